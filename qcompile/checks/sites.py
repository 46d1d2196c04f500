"""Verifies that a lowered model computes what was planned, site by site.

Each lowered site is compared with the reference interpreter, the format's definition in float64, on the input that the
site gets in the float model: rounding is all that may remain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from qcompile.analysis.folding import PIECE
from qcompile.analysis.forms import Convolution, Lookup, Stack, read_site
from qcompile.analysis.patches import CONVOLUTIONS
from qcompile.analysis.spaces import Site
from qcompile.analysis.stacks import Experts, experts_of
from qcompile.errors import TargetError
from qcompile.formats import FORMATS, Quantized, fake_quantize_rows
from qcompile.formats.static import Activation
from qcompile.ir import required
from qcompile.ir.graph import node_name
from qcompile.run.compare import compare
from qcompile.run.session import Session
from qcompile.targets.plans import Plan
from qcompile.targets.registry import Lowered

if TYPE_CHECKING:
    import torch

__all__ = ["CHECKED_SITES", "Checked", "Sampled", "check_lowering", "sites_to_check", "spread"]

#: Sites whose lowering is compared with the oracle, spread over the graph.
CHECKED_SITES = 12

#: Rows of a site that are compared: each is a sum over all features, and the oracle takes its time in float64.
CHECKED_ROWS = 256


@dataclass(frozen=True)
class Checked:
    """Lowered sites against the oracle on the same input, and the oracle against the float graph.

    Args:
        rel_l2: implementation error, the worst relative L2 of a site.
        sites: how many were compared.
        errors: by site, the squared relative L2 of what it puts out for its float input: the ``t²`` that is predicted.
    """

    rel_l2: float
    sites: int
    errors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampled:
    """A site as it stands in the float graph.

    It computes ``written = alpha · read Wᵀ + bias``, a convolution, or a product with a stack.
    """

    name: str
    read: str
    written: str
    alpha: float = 1.0
    beta: float = 1.0
    bias: ir.TensorProtocol | None = None
    experts: Experts | None = None
    indices: str | None = None
    convolution: Convolution | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of all that it reads, the indices that look experts up included."""
        return (self.read,) if self.indices is None else (self.read, self.indices)


def sites_to_check(sites: Sequence[Site]) -> list[Sampled]:
    """A sample of sites that will be quantized, spread over the graph; to be taken before the graph is lowered."""
    known = ("MatMul", "Gemm", "Einsum", *CONVOLUTIONS)
    nodes = [site.node for site in sites if site.node.op_type in known and not site.nested]
    sampled = map(_sampled, nodes)
    return spread([site for site in sampled if site is not None], CHECKED_SITES)


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most that many of the items, evenly spread, the first and the last among them."""
    places = {round(x) for x in np.linspace(0, len(items) - 1, min(count, len(items)))}
    return [items[place] for place in sorted(places)]


def _sampled(node: ir.Node) -> Sampled | None:
    """``None`` for a form that the oracle does not know."""
    site = read_site(node)
    if isinstance(site, Lookup) or (isinstance(site, Convolution) and site.patches.transposed):
        return None
    read, written = required.name_of(site.x), required.name_of(node.outputs[0])
    if isinstance(site, Stack):
        try:
            form = experts_of(site)
        except TargetError:
            return None
        chosen = form.indices
        if chosen is not None and chosen.const_value is not None:
            return None
        name = None if chosen is None else chosen.name
        return Sampled(node_name(node), read, written, experts=form, indices=name)
    bias = None if site.bias is None else site.bias.const_value
    if isinstance(site, Convolution):
        known = site.bias is None or bias is not None
        return Sampled(node_name(node), read, written, bias=bias, convolution=site) if known else None
    if node.inputs[1] is not site.weight or site.before is not None or (site.bias is not None and bias is None):
        return None
    return Sampled(node_name(node), read, written, site.alpha, site.beta, bias)


def check_lowering(
    sites: Sequence[Sampled], plans: Mapping[str, Plan], lowered_as: Lowered, model: ir.Model,
    inputs: Mapping[str, np.ndarray],
) -> Checked:  # fmt: skip
    """Compare lowered sites with the oracle, each by itself on the input that it gets in the float model.

    Args:
        sites: what they compute; those that were left as they are, for want of a static scale, are not looked at.
        plans: how they were quantized, by name.
        lowered_as: what the backend says of them.
        model: the lowered graph.
        inputs: what the sites read in the float graph, by name, and what they write where errors are to be measured.
    """
    present = ir.convenience.create_value_mapping(model.graph)
    given = {name for site in sites for name in site.reads}  # what is given to one site cannot be asked of another
    sites = [s for s in sites if s.written in present and s.written not in given and s.name in plans]
    sites = [s for s in sites if all(name in present and present[name].type is not None for name in s.reads)]
    last = {value.name for value in model.graph.outputs}  # rounded, where a convolution in a static range writes one
    sites = [s for s in sites if s.convolution is None or plans[s.name].range is None or s.written not in last]
    if not sites:
        return Checked(0.0, 0)
    reads = list(dict.fromkeys(name for site in sites for name in site.reads))
    inputs = _thinned(sites, present, inputs)
    graph = ir.convenience.extract(model.graph, reads, [site.written for site in sites])
    alone = ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
    results = Session(alone, fold=False).run({name: inputs[name] for name in reads})
    worst, errors = 0.0, {}
    for site in sites:
        plan, rounded = plans[site.name], lowered_as.sites.get(site.name, {}).get("rounds_input_to")
        activation = plan.activation or (FORMATS[rounded] if rounded else None)
        want = _oracle(site, plan.weight, activation, *(inputs[name] for name in site.reads))
        worst = max(worst, compare({"y": want}, {"y": results[site.written]})[0])
        if site.written in inputs:
            errors[site.name] = compare({"y": inputs[site.written]}, {"y": want})[0] ** 2
    return Checked(worst, len(sites), errors)


def _thinned(
    sites: Sequence[Sampled], present: Mapping[str, ir.Value], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What sites read and write, with so few rows as are compared, evenly spread, where the graph takes any number."""
    found = dict(inputs)
    for read in dict.fromkeys(site.read for site in sites):
        names = {name for site in sites if site.read == read for name in (*site.reads, site.written) if name in inputs}
        leading = {inputs[name].shape[:-1] for name in names}
        shapes = [present[name].shape for site in sites if site.read == read for name in site.reads]
        lead = inputs[read].shape[:-1]
        fixed = any(shape is None or len(shape) < 2 or isinstance(shape[-2], int) for shape in shapes)
        fixed |= any(site.convolution is not None for site in sites if site.read == read)
        if len(leading) > 1 or not lead or fixed or np.prod(lead) <= CHECKED_ROWS:
            continue
        kept = spread(range(lead[-1]), max(1, CHECKED_ROWS // int(np.prod(lead[:-1]))))
        found |= {name: inputs[name][..., kept, :] for name in names}
    return found


def _oracle(
    site: Sampled, quantized: Quantized, activation: Activation | None, x: np.ndarray, indices: np.ndarray | None = None
) -> np.ndarray:
    import torch

    if site.convolution is not None:
        x = np.moveaxis(x, 1, -1)  # rounded at each place
    rows = torch.from_numpy(np.ascontiguousarray(x)).float().reshape(-1, x.shape[-1])
    if activation is not None:
        rows = fake_quantize_rows(rows, activation)
    rows = rows.double()
    if site.experts is not None:
        pieces = site.experts.pieces(quantized)
        return site.experts.evaluate(
            rows.reshape(x.shape).numpy(), lambda expert: pieces[expert].dequantize().double().numpy(), indices
        )
    weight = quantized.dequantize()
    if site.convolution is not None:
        return _convolved(site, site.convolution, rows.reshape(x.shape).movedim(-1, 1), weight.double())
    parts = [rows @ piece.double().T for piece in weight.split(max(1, PIECE // weight.shape[1]))]
    y = (torch.cat(parts, 1) * site.alpha).numpy()
    if site.bias is not None:
        y = y + site.bias.numpy().astype(np.float64) * site.beta
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _convolved(site: Sampled, form: Convolution, x: torch.Tensor, weight: torch.Tensor) -> np.ndarray:
    y = form.patches.convolved(x, form.layout.weight(weight)).numpy()
    if site.bias is None:
        return y
    return y + site.bias.numpy().astype(np.float64).reshape(-1, *[1] * (y.ndim - 2))
