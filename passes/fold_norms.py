"""Fold norms: scales move into the sites around them, LayerNorm becomes RMSNorm where its input can be centered.

A constant scale (a norm's γ, a layer scale, 1+γ once folded to a constant) moves forward into the sites that read
it, or backward into the sites that write it, whichever the freedoms allow. A shift behind a norm moves into the
biases of the sites that read it. A LayerNorm whose whole input stream is written by sites and constants, and read
by nothing but such norms, needs no centering once its writers are centered (Pre-RMSNorm, arXiv:2305.14858).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.axes import Limit, Mode, Node, Ref, Structure
from qcompile.folding import rewrite
from qcompile.freedom import Freedom
from qcompile.graph import DOMAIN, add_initializer, append_node, ensure_initializer, tidy
from qcompile.passes.canonicalize import make_norm
from qcompile.pipeline import State
from qcompile.spaces import Analysis, Norm, Scaling, Site, analyze, label

__all__ = ["FoldNorms"]

#: A shift may be divided by a scale no smaller than this fraction of the largest.
SMALLEST_SCALE = 1e-3

@dataclass(frozen=True)
class FoldNorms:
    """Fold scales and shifts into sites, and center what LayerNorms read."""

    name: ClassVar[str] = "fold-norms"

    def apply(self, state: State) -> bool:
        """Rewrites constants and norm operators; the function of the graph stays the same."""
        untied = _untie(state.model)
        shifted = _fold_shifts(state)
        scaled = 0
        while folded := _fold_scales(state):  # one link of a chain of scalings a round
            scaled += folded
        centered = _center(state)
        tidy(state.model)
        return bool(untied or shifted or scaled or centered)


# -- constants with several readers ------------------------------------------------------------------------------


def _untie(model: ir.Model) -> int:
    """Give every norm and scaling its own copy of its parameters; sites keep sharing theirs."""
    copies = 0
    for value in list(model.graph.initializers.values()):
        uses = list(value.uses())
        if len(uses) < 2 or value.const_value is None or value.shape is None or len(value.shape) != 1:
            continue
        for node, index in uses[1:]:
            node.replace_input_with(index, add_initializer(model, value.name, value.const_value.numpy()))
            copies += 1
    return copies


# -- shifts ------------------------------------------------------------------------------------------------------


def _fold_shifts(state: State) -> int:
    """Move ``β`` of each norm into the biases of the sites behind it, where sites are all that read it."""
    analysis = analyze(state.model, join_norms=False)
    readers: dict[ir.Value, list[Site]] = defaultdict(list)
    for site in analysis.sites:
        if site.input is not None and site.node.op_type in ("MatMul", "Gemm"):
            readers[site.input].append(site)
    folded = 0
    for norm in analysis.norms:
        output = norm.node.outputs[0]
        if norm.shift is None or norm.shift.const_value is None or not norm.shift.const_value.numpy().any():
            continue
        if output.is_graph_output() or {site.node for site in readers[output]} != {n for n, _ in output.uses()}:
            continue
        if any(site.ref_in is not norm.ref_out or site.shape[site.axis_in] != site.weight.const_value.size // site.shape[
            site.axis_out] for site in readers[output]):  # fmt: skip
            continue
        _shift_into_biases(state.model, norm, readers[output])
        folded += 1
    return folded


def _shift_into_biases(model: ir.Model, norm: Norm, sites: Sequence[Site]) -> None:
    shift = norm.shift.const_value.numpy().astype(np.float64)
    for site in sites:
        weight = site.weight.const_value.numpy().astype(np.float64)
        _add_bias(model, site, shift @ (weight if site.axis_in == 0 else weight.T))
    replace = add_initializer(model, f"{norm.shift.name}_folded", np.zeros_like(norm.shift.const_value.numpy()))
    norm.node.replace_input_with(list(norm.node.inputs).index(norm.shift), replace)


def _add_bias(model: ir.Model, site: Site, extra: np.ndarray) -> None:
    """Add a vector to what a site writes: to the bias that it has, or by a new operator behind it."""
    dtype = site.weight.dtype.numpy()
    if site.node.op_type == "Gemm":
        bias = site.node.inputs[2] if len(site.node.inputs) > 2 else None
        beta = site.node.attributes.get_float("beta", 1.0)
        extra = extra * site.node.attributes.get_float("alpha", 1.0) / (beta or 1.0)
        if bias is not None and bias.const_value is not None and beta:
            extra = extra + bias.const_value.numpy().astype(np.float64).reshape(-1)
            site.node.replace_input_with(2, add_initializer(model, f"{site.name}_bias", extra.astype(dtype)))
            return
    output = site.node.outputs[0]
    uses = list(output.uses())
    if len(uses) == 1 and uses[0][0].op_type == "Add" and not output.is_graph_output():
        node, index = uses[0]
        other = node.inputs[1 - index]
        if other.const_value is not None and tuple(other.shape) == extra.shape:
            total = (other.const_value.numpy().astype(np.float64) + extra).astype(dtype)
            node.replace_input_with(1 - index, add_initializer(model, f"{site.name}_bias", total))
            return
    bias = add_initializer(model, f"{site.name}_bias", extra.astype(dtype))
    made = append_node(site.node, "Add", [output, bias], name=f"{site.name}_shifted", like=output, after=True)
    ir.convenience.replace_all_uses_with(output, made.outputs[0], replace_graph_outputs=True)
    made.replace_input_with(0, output)


# -- scales ------------------------------------------------------------------------------------------------------


def _fold_scales(state: State) -> int:
    analysis = analyze(state.model, join_norms=False)
    uses = analysis.uses()
    folded = 0
    for node, group in _by_space(analysis).items():
        reason = _fold_forward(analysis, node, group, uses)
        if reason is not None and all(isinstance(item, Scaling) for item in group):
            reasons = [_fold_backward(analysis, item, uses) for item in group]
            reason = next((text for text in reasons if text is not None), None)
        if reason is None:
            folded += len(group)
        for item in group if reason is not None else ():
            state.decline(item.node.name or label(item.node), "folding its scale into the sites around it", reason)
    return folded


def _by_space(analysis: Analysis) -> dict[Node, list[Norm | Scaling]]:
    groups: dict[Node, list[Norm | Scaling]] = defaultdict(list)
    for item in [*analysis.norms, *analysis.scalings]:
        if item.scale is not None and item.scale.const_value is not None and not analysis.uniform(item.scale):
            groups[analysis.axes.find(item.ref_out).node].append(item)
    return groups


def _fold_forward(analysis: Analysis, node: Node, group: list[Norm | Scaling], uses: dict) -> str | None:
    """Fold the scale of one space into its readers; the reason if that cannot be done."""
    scale = group[0].scale.const_value.numpy().astype(np.float64).reshape(-1)
    if any(not np.array_equal(item.scale.const_value.numpy().reshape(-1), scale) for item in group[1:]):
        return "several scales that differ are applied on one space"
    base = group[0].ref_out
    if node.structure is not Structure.LEAF or any(_relative(analysis, i.ref_out, base) is not Mode.SAME for i in group):
        return "the scaled axis is split by later operators"
    reason = _why_not(node, Freedom.DIAGONAL)
    constants = [(value, axis) for value, axis in uses[node] if value.const_value is not None]
    if reason is None and _has_shifts(analysis, constants, base) and not _well_conditioned(scale):
        reason = "a shift is added behind the scale, which is too small on some channels to divide by"
    if reason is None and any(analysis.axes.find(other.ref_in).node is node for other in analysis.scalings):
        reason = "another scaling reads it"
    if reason is None and _written_by_sites(analysis, base, uses[node]):
        reason = "other operators write the same space"
    if reason is not None:
        return reason
    for value, axis in constants:
        _scale_constant(analysis, value, axis, base, scale)
    for item in group:
        _drop_scale(analysis.model, item)
    return None


def _why_not(node: Node, wanted: Freedom) -> str | None:
    if wanted in node.freedom:
        return None
    limits = [limit for limit in node.limits if wanted not in limit.freedom]
    return limits[0].reason if limits else f"the space is only {node.freedom.label}"


def _relative(analysis: Analysis, ref: Ref, base: Ref) -> Mode:
    """How the transform of ``ref`` follows from that of ``base``, which refers to the same node."""
    mode, own = analysis.axes.find(ref).mode, analysis.axes.find(base).mode
    return Mode.PLAIN if Mode.PLAIN in (mode, own) else mode.after(own)


def _has_shifts(analysis: Analysis, constants: list[tuple[ir.Value, int]], base: Ref) -> bool:
    return any(
        _relative(analysis, analysis.refs_of[value][axis], base) is Mode.SAME and value.const_value.numpy().any()
        for value, axis in constants
    )


def _well_conditioned(scale: np.ndarray) -> bool:
    size = np.abs(scale)
    return bool(size.min() > SMALLEST_SCALE * size.max())


def _written_by_sites(analysis: Analysis, base: Ref, uses: list[tuple[ir.Value, int]]) -> bool:
    """Whether a site writes the space: its weight would have to be divided by the scale."""
    return any(
        value.const_value is not None
        and len(value.shape) > 1
        and _relative(analysis, analysis.refs_of[value][axis], base) is Mode.SAME
        for value, axis in uses
    )


def _scale_constant(analysis: Analysis, value: ir.Value, axis: int, base: Ref, scale: np.ndarray) -> None:
    mode = _relative(analysis, analysis.refs_of[value][axis], base)
    shape = [-1 if i == axis else 1 for i in range(len(value.shape))]
    if mode is Mode.DUAL:
        rewrite(analysis.model, value, lambda array: array * scale.reshape(shape))
    elif mode is Mode.SAME:
        rewrite(analysis.model, value, lambda array: array / np.where(scale == 0, 1, scale).reshape(shape))


def _drop_scale(model: ir.Model, item: Norm | Scaling) -> None:
    if isinstance(item, Norm):
        index = list(item.node.inputs).index(item.scale)
        size = int(item.scale.shape[-1])
        ones = ensure_initializer(model, f"ones_{size}_{item.scale.dtype.name.lower()}", np.ones(size, item.scale.dtype.numpy()))
        item.node.replace_input_with(index, ones)
        return
    source = next(value for value in item.node.inputs if value is not item.scale)
    ir.convenience.replace_all_uses_with(item.node.outputs[0], source, replace_graph_outputs=True)
    item.node.graph.remove(item.node, safe=True)


def _fold_backward(analysis: Analysis, item: Scaling, uses: dict) -> str | None:
    """Fold a scaling into the sites that write its input; the reason if that cannot be done."""
    root = analysis.axes.find(item.ref_in)
    scale = item.scale.const_value.numpy().astype(np.float64).reshape(-1)
    if root.node.structure is not Structure.LEAF:
        return "the scaled axis is made of several parts"
    reason = _why_not(root.node, Freedom.DIAGONAL)
    if reason is not None:
        return reason
    constants = [(value, axis) for value, axis in uses[root.node] if value.const_value is not None]
    refs = [analysis.refs_of[value][axis] for value, axis in constants]
    if any(_relative(analysis, ref, item.ref_in) is not Mode.SAME for ref in refs):
        return "something else reads the value before it is scaled"
    if any(other is not item and analysis.axes.same(other.ref_in, item.ref_in) for other in analysis.scalings):
        return "something else reads the value before it is scaled"
    if any(analysis.axes.find(other.ref_out).node is root.node for other in analysis.scalings):
        return "another scaling writes it"
    norms = [norm for norm in analysis.norms if analysis.axes.find(norm.ref_out).node is root.node]
    constants += [(norm.scale, len(norm.scale.shape) - 1) for norm in norms]
    for value, axis in constants:
        shape = [-1 if i == axis else 1 for i in range(len(value.shape))]
        rewrite(analysis.model, value, lambda array, shape=shape: array * scale.reshape(shape))
    _drop_scale(analysis.model, item)
    return None


# -- centering -----------------------------------------------------------------------------------------------------


def _center(state: State) -> int:
    """Turn LayerNorms into RMSNorms where all that writes their input can be centered."""
    analysis = analyze(state.model, join_norms=False)
    uses = analysis.uses()
    groups: dict[Node, list[Norm]] = defaultdict(list)
    for norm in analysis.norms:
        groups[analysis.axes.find(norm.ref_in).node].append(norm)
    converted = 0
    for node, norms in groups.items():
        if not any(norm.centered for norm in norms):
            continue
        reason = _why_not_centered(analysis, node, norms, uses)
        if reason is None:
            _center_writers(analysis, node, uses)
            converted += len([_to_rms(state.model, norm) for norm in norms])
            continue
        for norm in norms:
            state.decline(norm.node.name or label(norm.node), "turning it into RMSNorm by centering its input", reason)
    return converted


def _why_not_centered(analysis: Analysis, node: Node, norms: list[Norm], uses: dict) -> str | None:
    if node.structure is not Structure.LEAF:
        return "its input axis is split by other operators"
    if not all(norm.centered and norm.node.domain != "com.microsoft" for norm in norms):
        return "another kind of normalization reads the same stream"
    own = {f"{label(norm.node)} normalizes over it" for norm in norms}
    other: list[Limit] = [limit for limit in node.limits if limit.reason not in own]
    if other:
        return other[0].reason
    outputs = {id(norm.node.outputs[0]) for norm in analysis.norms}
    for value, axis in uses[node]:
        if _relative(analysis, analysis.refs_of[value][axis], norms[0].ref_in) is not Mode.SAME:
            return f"'{value.name}' reads the stream before it is normalized"
        if id(value) in outputs:
            return f"the stream is written by a normalization, '{value.name}', whose mean is not zero"
        if value.const_value is None and any(item.node.outputs[0] is value for item in analysis.scalings):
            return f"the stream is written by a scaling, '{value.name}', that could not be folded"
    return None


def _center_writers(analysis: Analysis, node: Node, uses: dict) -> None:
    for value, axis in uses[node]:
        if value.const_value is not None:
            rewrite(analysis.model, value, lambda array, axis=axis: array - array.mean(axis=axis, keepdims=True))


def _epsilon(node: ir.Node) -> float:
    if node.domain == DOMAIN:
        return float(node.inputs[-1].const_value.numpy())
    return node.attributes.get_float("epsilon", 1e-5)


def _to_rms(model: ir.Model, norm: Norm) -> ir.Node:
    old = norm.node
    epsilon = _epsilon(old)
    made = make_norm(
        model, old, old.inputs[0], norm.scale, None, epsilon, centered=False, name=f"{old.name}_rms", like=old.outputs[0]
    )  # fmt: skip
    result = made.outputs[0]
    if norm.shift is not None and (norm.shift.const_value is None or norm.shift.const_value.numpy().any()):
        result = append_node(old, "Add", [result, norm.shift], name=f"{old.name}_shift", like=result).outputs[0]
    ir.convenience.replace_all_uses_with(old.outputs[0], result, replace_graph_outputs=True)
    old.graph.remove(old, safe=True)
    return made
