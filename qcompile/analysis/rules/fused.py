"""onnxruntime's fused operators: a linear operator with its bias and activation in one node."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qcompile.analysis.axes import Ref
from qcompile.analysis.rules.convolution import conv
from qcompile.analysis.rules.elementwise import aligned, carry, is_one, zero
from qcompile.analysis.rules.linear import add_channel_bias, contract, gemm, matmul
from qcompile.analysis.rules.normalization import channel_parameters
from qcompile.analysis.spaces import RULES, Analysis, Norm, Site, rule
from qcompile.ir.graph import label
from qcompile.ir.required import operand, optional
from qcompile.transforms.freedom import Freedom

__all__: list[str] = []


def _activate(analysis: Analysis, node: ir.Node, ref_list: Sequence[Ref]) -> None:
    """The freedom that the fused activation leaves on the result."""
    name = node.attributes.get_string("activation", "")
    if not name or name == "Identity":
        return
    kept = Freedom.POSITIVE_MONOMIAL if name in ("Relu", "LeakyRelu") else Freedom.PERMUTATION
    for ref in ref_list:
        analysis.axes.constrain(ref, kept, f"{label(node)} acts on each element")


def _sum(analysis: Analysis, node: ir.Node, values: Sequence[ir.Value | None]) -> list[Ref]:
    """The axes of a broadcast sum."""
    out = []
    for column in aligned(analysis, values):
        full = [ref for ref in column if not is_one(analysis, ref)]
        for ref in full[1:]:
            analysis.axes.unify(full[0], ref, f"{label(node)} adds them")
        for value, ref in zip(values, column, strict=True):
            if full and is_one(analysis, ref) and not zero(analysis, value):
                analysis.axes.constrain(full[0], Freedom.ORTHOGONAL_ONES, f"{label(node)} adds one number")
        out.append(full[0] if full else analysis.axes.one)
    return out


@rule("BiasGelu", "FastGelu", domain="com.microsoft")
def biased_activation(analysis: Analysis, node: ir.Node) -> None:
    """A bias, then GELU."""
    out = _sum(analysis, node, [value for value in node.inputs if value is not None])
    for ref in out:
        analysis.axes.constrain(ref, Freedom.PERMUTATION, f"{label(node)} acts on each element")
    analysis.set(node.outputs[0], out)


@rule("BiasAdd", domain="com.microsoft")
def biased_residual(analysis: Analysis, node: ir.Node) -> None:
    """A residual join with a bias."""
    analysis.set(node.outputs[0], _sum(analysis, node, node.inputs))


@rule("BiasSplitGelu", domain="com.microsoft")
def biased_gate(analysis: Analysis, node: ir.Node) -> None:
    """A bias, then the first half of the axis times GELU of the second."""
    out = _sum(analysis, node, node.inputs)
    size = analysis.axes.size(out[-1])
    halves = size and analysis.axes.as_sum(out[-1], [size // 2, size // 2], label(node))
    if not halves:
        analysis.opaque(node, f"{label(node)} has halves that cannot be followed")
        return
    for ref in (*out[:-1], halves[1]):
        analysis.axes.constrain(ref, Freedom.PERMUTATION, f"{label(node)} acts on each element")
    analysis.set(node.outputs[0], [*out[:-1], carry(analysis, halves[0], halves[1], label(node))])


@rule("FusedConv", domain="com.microsoft")
def activated_convolution(analysis: Analysis, node: ir.Node) -> None:
    """A convolution, a residual join, an activation."""
    conv(analysis, node)
    refs = analysis.refs_or_none(node.outputs[0])
    if refs is None:  # the convolution could not be followed
        return
    if optional(node, 3) is not None:
        for ref, other in zip(refs, analysis.refs(node.inputs[3]), strict=True):
            analysis.axes.unify(ref, other, f"{label(node)} adds them")
    _activate(analysis, node, refs)


@rule("FusedGemm", domain="com.microsoft")
def activated_product(analysis: Analysis, node: ir.Node) -> None:
    """A matrix product with a bias and an activation."""
    gemm(analysis, node)
    _activate(analysis, node, analysis.refs_or_none(node.outputs[0]) or ())


RULES["com.microsoft", "TransposeMatMul"] = matmul  # the older name of FusedMatMul


@rule("GroupNorm", domain="com.microsoft")
def channels_last_norm(analysis: Analysis, node: ir.Node) -> None:
    """A group norm with channels last, before SiLU if it has an activation."""
    refs = list(analysis.refs(node.inputs[0]))
    size, groups = analysis.axes.size(refs[-1]), node.attributes.get_int("groups", 0)
    parts = size and groups and analysis.axes.as_product(refs[-1], [groups, size // groups], label(node))
    if not parts or not node.attributes.get_int("channels_last", 1):
        analysis.opaque(node, f"{label(node)} has an option that is not followed")
        return
    for ref in refs[:1]:
        analysis.axes.constrain(ref, Freedom.PERMUTATION, f"{label(node)} treats each sample by itself")
    analysis.axes.constrain(parts[0], Freedom.SIGNED_PERMUTATION, f"{label(node)} treats each group by itself")
    for ref in (parts[1], *refs[1:-1]):
        analysis.axes.constrain(ref, Freedom.ORTHOGONAL_ONES, f"{label(node)} has statistics over it")
    channel_parameters(analysis, node, refs[-1], operand(node, 1), operand(node, 2))
    for ref in refs if node.attributes.get_int("activation", 0) else ():
        analysis.axes.constrain(ref, Freedom.PERMUTATION, f"{label(node)} acts on each element")
    analysis.set(node.outputs[0], refs)


@rule("EmbedLayerNormalization", domain="com.microsoft")
def embedding(analysis: Analysis, node: ir.Node) -> None:
    """The sum of two or three lookups, then a layer norm with its scale and shift."""
    tables = [value for value in node.inputs[2:5] if value is not None]
    ids, reason = analysis.refs(node.inputs[0]), label(node)
    axis = analysis.refs(tables[0])[1]
    for table in tables:
        analysis.axes.constrain(analysis.refs(table)[0], Freedom.NONE, f"{reason} indexes it")
        analysis.axes.unify(axis, analysis.refs(table)[1], f"{reason} adds them")
        analysis.sites.append(Site(node, table, None, 0, 1, None, axis))
    analysis.axes.constrain(axis, Freedom.ORTHOGONAL_ONES, f"{reason} normalizes over it")
    scale, shift = operand(node, 5), operand(node, 6)
    out = axis
    if not analysis.join_norms:
        out = analysis.axes.fresh(analysis.axes.size(axis))
        analysis.freeze([scale], f"{reason} scales with it")
        analysis.axes.unify(analysis.refs(shift)[0], out, f"{reason} adds its shift")
    else:
        channel_parameters(analysis, node, axis, scale, shift)
    analysis.norms.append(Norm(node, axis, out, scale, shift, centered=True))
    analysis.set(node.outputs[0], [*ids, out])
    for output in node.outputs[1:2]:
        analysis.set(output, [analysis.axes.frozen(None, reason)])
    for output in node.outputs[2:3]:
        analysis.set(output, [*ids, axis])


@rule("MoE", domain="com.microsoft")
def experts(analysis: Analysis, node: ir.Node) -> None:
    """``fc1 [experts, inner, hidden]``, ``fc2 [experts, hidden, inner]``: linear in what enters and what leaves."""
    refs, router = list(analysis.refs(node.inputs[0])), analysis.refs(node.inputs[1])
    first, second = (analysis.refs(node.inputs[i]) for i in (2, 4))
    contract(analysis, refs[-1], first[2], label(node))
    if optional(node, 6) is not None:
        contract(analysis, refs[-1], analysis.refs(node.inputs[6])[2], label(node))
    for value in node.inputs[2:]:
        for ref in (analysis.refs_or_none(value) or [])[:-1]:
            if ref is not second[1]:
                analysis.axes.constrain(ref, Freedom.NONE, f"{label(node)} routes to experts")
    for ref in (*router[1:], second[2], *(refs[:-1] if len(refs) > 2 else ())):
        analysis.axes.constrain(ref, Freedom.NONE, f"{label(node)} routes to experts")
    rows = Freedom.PERMUTATION if len(refs) == 2 else Freedom.NONE
    analysis.axes.constrain(router[0], rows, f"{label(node)} treats each row by itself")
    if len(refs) == 2:
        analysis.axes.unify(refs[0], router[0], f"{label(node)} routes each row")
    analysis.freeze([v for i, v in enumerate(node.inputs) if i in (3, 7)], f"{label(node)} acts on each element")
    if optional(node, 5) is not None:
        add_channel_bias(analysis, node, second[1], analysis.refs(node.inputs[5])[1], refs[:-1])
    analysis.set(node.outputs[0], [*refs[:-1], second[1]])
