"""Split branches: the leading directions of a weight become two thin products beside it, in high precision.

SVDQuant (Li et al., 2024, arXiv:2411.05007): what is left is smaller and more even, and loses less in few bits. Where
the branch begins with what rounding loses, that is what it makes up for (LoRC, Wu et al., 2023, arXiv:2307.09782).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.analysis.matrices import as_weight, weight_matrix
from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Site
from qcompile.choice.branches import branch_of, rank_in
from qcompile.choice.splits import SPLIT, Branch
from qcompile.ir.graph import add_initializer
from qcompile.ir.required import constant, operand, producer_of, shape_of
from qcompile.ir.sums import add_beside, inseparable, product_like
from qcompile.ir.tensors import Derived, read
from qcompile.passes.state import State
from qcompile.statistics.collected import Statistics
from qcompile.targets.scheme import Scheme

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
            for site in group.sites:
                has_one = operand(site.node, 1) is not site.weight or f"{site.name}{self.how.suffix}.up" in names
                if has_one or SPLIT in site.node.metadata_props:
                    continue
                reason = inseparable(site.node)
                if reason is None and rank_in(site.shape, self.how) < 1:
                    reason = f"a weight of {site.shape[0]} x {site.shape[1]} is no larger than its branch"
                if reason is not None:
                    state.decline(site.name, _WHAT, reason)
                    continue
                _put_branch(state.model, site, self.how, *self._branch(site, self.statistics.get(group.name)))
                changed = True
        if changed:
            state.edited()
        return changed

    def _branch(self, site: Site, own: Statistics | None) -> tuple[np.ndarray, np.ndarray]:
        energy = None if own is None else own.second_moment.diagonal()
        left, right = branch_of(weight_matrix(site).float().to(self.device), energy, self.how, self.scheme.weight)
        return left.cpu().numpy(), right.cpu().numpy()


def _put_branch(model: ir.Model, site: Site, how: Branch, left: np.ndarray, right: np.ndarray) -> None:
    node, name = site.node, f"{site.name}{how.suffix}"
    thin = []
    for word, matrix in (("down", right), ("up", left)):  # [out, in] of each; the site's own layout
        array = np.ascontiguousarray(matrix.T if site.axis_in == 0 else matrix)
        array = array.astype(constant(site.weight).dtype.numpy())
        thin.append(add_initializer(model, f"{site.weight.name}_{word}", array))
    middle = product_like(node, operand(node, 0), thin[0], f"{name}.down")
    middle.shape = ir.Shape([*shape_of(operand(node, 0))[:-1], len(right)])
    beside = product_like(node, middle, thin[1], f"{name}.up")
    for value in (middle, beside):
        producer_of(value).metadata_props[SPLIT] = str(how)
    rest = partial(_without, site=site, left=left, right=right)
    tensor = Derived(constant(site.weight), rest, ir.Shape(site.shape), name=f"{site.weight.name}_rest")
    node.replace_input_with(1, add_initializer(model, f"{site.weight.name}_rest", tensor))
    add_beside(node, beside)


def _without(tensor: ir.TensorProtocol, site: Site, left: np.ndarray, right: np.ndarray) -> ir.TensorProtocol:
    """What a branch leaves of a weight, computed when it is read: of many sites it would not fit into memory."""
    whole = read(tensor)
    return ir.tensor((whole.astype(np.float32) - as_weight(site, left @ right)).astype(whole.dtype))
