"""Split branches: leading directions of a weight, or of its input, become thin products beside it, in high precision.

SVDQuant (Li et al., 2024, arXiv:2411.05007): what is left is smaller and more even, and loses less in few bits. Where
the branch begins with what rounding loses, that is what it makes up for (LoRC, Wu et al., 2023, arXiv:2307.09782).
Directions of the input are computed once for all that reads it, and taken off it by a third thin product.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.analysis.matrices import as_weight, weight_matrix
from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Site
from qcompile.choice.branch_fits import fit_branches
from qcompile.choice.branches import rank_in
from qcompile.choice.splits import SPLIT, Branch
from qcompile.ir.graph import add_initializer, append_node
from qcompile.ir.required import constant, graph_of, operand, producer_of, shape_of
from qcompile.ir.sums import add_beside, inseparable, product_like
from qcompile.ir.tensors import Derived, read
from qcompile.passes.state import State
from qcompile.statistics.collected import Statistics
from qcompile.targets.scheme import Scheme

if TYPE_CHECKING:
    import torch

__all__ = ["SplitBranches"]

_WHAT = "a branch of low rank"


@dataclass(frozen=True)
class SplitBranches:
    """Take branches of low rank out of weights.

    Args:
        groups: the sites by the value that they read.
        statistics: of these values, by name; without them all features count alike.
        scheme: what the rest is rounded to, as far as that is known.
        how: which branch.
        device: where torch computes.
    """

    groups: Sequence[Siblings]
    statistics: Mapping[str, Statistics]
    scheme: Scheme
    how: Branch
    device: str = "cpu"
    name: ClassVar[str] = "split-branches"

    def apply(self, state: State) -> bool:
        """Put a branch beside each site, and leave the site what the branch lacks."""
        changed, names = False, {node.name for node in state.model.graph.all_nodes()}
        for group in self.groups:
            sites = [site for site in group.sites if self._can(state, site, names)]
            if not sites:
                continue
            weights = [weight_matrix(site).float().to(self.device) for site in sites]
            known = self.statistics.get(group.name)
            found = fit_branches(weights, known, self.scheme, self.how)
            right, back, changed = found[0].right, found[0].back, True
            if back is None:
                for site, branch in zip(sites, found, strict=True):
                    _put_branch(state.model, site, self.how, _array(branch.left), _array(branch.right))
                continue
            for graph in dict.fromkeys(graph_of(site.node) for site in sites):
                made = zip(sites, found, strict=True)
                pairs = [(site, branch.left) for site, branch in made if graph_of(site.node) is graph]
                _put_branches_of_input(state.model, pairs, self.how, right, back)
        if changed:
            state.edited()
        return changed

    def _can(self, state: State, site: Site, names: Collection[str | None]) -> bool:
        """Whether a site is to have a branch; of one that cannot have it is said why."""
        has_one = operand(site.node, 1) is not site.weight or f"{site.name}{self.how.suffix}.up" in names
        if has_one or SPLIT in site.node.metadata_props:
            return False
        reason = inseparable(site.node)
        if reason is None and rank_in(site.shape, self.how) < 1:
            reason = f"a weight of {site.shape[0]} x {site.shape[1]} is no larger than its branch"
        if reason is not None:
            state.decline(site.name, _WHAT, reason)
        return reason is None


def _array(matrix: torch.Tensor) -> np.ndarray:
    return matrix.cpu().numpy()


def _product(model: ir.Model, site: Site, how: Branch, word: str, x: ir.Value, matrix: np.ndarray) -> ir.Value:
    """A product of a branch in front of a site: with ``[out, in]``, in the layout of the site's own weight."""
    array = np.ascontiguousarray(matrix.T if site.axis_in == 0 else matrix)
    array = array.astype(constant(site.weight).dtype.numpy())
    weight = add_initializer(model, f"{site.weight.name}_{word}", array)
    made = product_like(site.node, x, weight, f"{site.name}{how.suffix}.{word}")
    made.shape = ir.Shape([*shape_of(x)[:-1], len(matrix)])
    producer_of(made).metadata_props[SPLIT] = str(how)
    return made


def _put_branch(model: ir.Model, site: Site, how: Branch, left: np.ndarray, right: np.ndarray) -> None:
    """Take a branch out of a weight."""
    node = site.node
    middle = _product(model, site, how, "down", operand(node, 0), right)
    beside = _product(model, site, how, "up", middle, left)
    rest = partial(_without, site=site, left=left, right=right)
    tensor = Derived(constant(site.weight), rest, ir.Shape(site.shape), name=f"{site.weight.name}_rest")
    node.replace_input_with(1, add_initializer(model, f"{site.weight.name}_rest", tensor))
    add_beside(node, beside)


def _put_branches_of_input(
    model: ir.Model, pairs: Sequence[tuple[Site, torch.Tensor]], how: Branch, right: torch.Tensor, back: torch.Tensor
) -> None:  # fmt: skip
    """Take directions off the input of siblings of one graph, and let each add what its weight makes of them."""
    nodes = {site.node: site for site, _ in pairs}
    first = nodes[next(node for node in graph_of(pairs[0][0].node) if node in nodes)]
    middle = _product(model, first, how, "down", x := operand(first.node, 0), _array(right))
    off = _product(model, first, how, "back", middle, _array(back))
    rest = append_node(first.node, "Sub", [x, off], name=f"{first.name}{how.suffix}.rest", like=x).outputs[0]
    for site, left in pairs:
        site.node.replace_input_with(0, rest)
        add_beside(site.node, _product(model, site, how, "up", middle, _array(left)))


def _without(tensor: ir.TensorProtocol, site: Site, left: np.ndarray, right: np.ndarray) -> ir.TensorProtocol:
    """What a branch leaves of a weight, computed when it is read: of many sites it would not fit into memory."""
    whole = read(tensor)
    return ir.tensor((whole.astype(np.float32) - as_weight(site, left @ right)).astype(whole.dtype))
