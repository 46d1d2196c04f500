"""Linear operators: products of two tensors, lookups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import onnx_ir as ir

from qcompile.analysis.axes import Mode, Ref
from qcompile.analysis.rules.elementwise import gate, is_one
from qcompile.analysis.spaces import Analysis, Site, rule
from qcompile.ir.graph import is_float, label
from qcompile.ir.required import operand, operands, optional, rank_of, sizes_of
from qcompile.transforms.freedom import Freedom

__all__ = ["add_channel_bias", "add_site", "contract", "is_weight", "weight_of"]


def is_weight(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """Whether a value is a constant matrix (or a stack of them) of floating-point numbers."""
    if value is None or value.const_value is None or not is_float(value):
        return False
    return sum(size > 1 for size in sizes_of(value)) >= 2


def weight_of(value: ir.Value | None) -> ir.Value | None:
    """The constant that a value is, or that it is looked up in: the matrix of each token's expert, out of a stack."""
    if value is None or is_weight(value):
        return value
    node = value.producer()
    source = None if node is None or node.domain else optional(node, 0)
    if node is None or not is_weight(source) or rank_of(source) < 3:
        return None
    by_rows = node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0
    indices = operand(node, 1).shape if node.op_type == "GatherND" else None
    deep = indices is not None and indices[-1] == 1 and not node.attributes.get_int("batch_dims", 0)
    return source if by_rows or deep else None


def add_site(
    analysis: Analysis, node: ir.Node, weight: ir.Value, other: ir.Value, axes: tuple[int, int], refs: tuple[Ref, Ref]
) -> None:
    """Record a product of an activation with a constant, or with what is looked up in one.

    Args:
        axes: of ``weight``, those that are contracted and written.
        refs: the axis of ``other`` that is contracted, and the axis of the output.
    """
    source = weight_of(weight)
    if source is None or other.const_value is not None:
        return
    shift = len(analysis.refs(weight)) - rank_of(source)
    if min(axes) > shift or weight is source:  # beyond what is looked up
        analysis.sites.append(Site(node, source, other, axes[0] - shift, axes[1] - shift, *refs))


def contract(analysis: Analysis, a: Ref, b: Ref, reason: str) -> None:
    """Σ aᵢ bᵢ is kept by T on one side and T⁻ᵀ on the other."""
    analysis.axes.unify(a, b.through(Mode.DUAL), f"{reason} contracts them")


def batch(analysis: Analysis, a: list[Ref], b: list[Ref], reason: str) -> list[Ref]:
    """The broadcast leading axes of a batched product."""
    rank = max(len(a), len(b))
    a = [analysis.axes.one] * (rank - len(a)) + a
    b = [analysis.axes.one] * (rank - len(b)) + b
    out = []
    for left, right in zip(a, b, strict=True):
        if is_one(analysis, left) or is_one(analysis, right):
            out.append(right if is_one(analysis, left) else left)
        else:
            out.append(gate(analysis, left, right, reason))
    return out


@rule("MatMul")
@rule("FusedMatMul", domain="com.microsoft")
def matmul(analysis: Analysis, node: ir.Node) -> None:
    """Rows and columns are linear, the contracted axes carry T and T⁻ᵀ."""
    left, right = (list(analysis.refs(value)) for value in node.inputs[:2])
    flip_left, flip_right = (node.attributes.get_int(name, 0) for name in ("transA", "transB"))
    if node.attributes.get_int("transBatchA", 0) or node.attributes.get_int("transBatchB", 0):
        analysis.opaque(node, f"{label(node)} transposes its batch")
        return
    if flip_left and len(left) > 1:
        left[-2:] = left[:-3:-1]
    if flip_right and len(right) > 1:
        right[-2:] = right[:-3:-1]
    contract(analysis, left[-1], right[-2] if len(right) > 1 else right[0], label(node))
    out = batch(analysis, left[:-2], right[:-2], label(node))
    out += left[-2:-1] + (right[-1:] if len(right) > 1 else [])
    analysis.set(node.outputs[0], out)
    a, b = operand(node, 0), operand(node, 1)
    if weight_of(b) is not None and len(right) > 1:
        axes = (len(right) - 1, len(right) - 2)
        add_site(analysis, node, b, a, axes if flip_right else axes[::-1], (left[-1], out[-1]))
    elif weight_of(a) is not None and len(right) > 1:
        axes = (len(left) - 2, len(left) - 1)
        add_site(analysis, node, a, b, axes if flip_left else axes[::-1], (right[-2], out[-2]))


@rule("Gemm")
def gemm(analysis: Analysis, node: ir.Node) -> None:
    """``alpha · A B + beta · C`` with either factor transposed."""
    x, weight = operand(node, 0), operand(node, 1)
    left, right = (list(analysis.refs(value)) for value in (x, weight))
    flip_right = node.attributes.get_int("transB", 0)
    if node.attributes.get_int("transA", 0):
        left.reverse()
    if flip_right:
        right.reverse()
    contract(analysis, left[1], right[0], label(node))
    out = [left[0], right[1]]
    if optional(node, 2) is not None:
        _add_bias(analysis, node, out)
    analysis.set(node.outputs[0], out)
    if is_weight(weight) and x.const_value is None:
        axis_in, axis_out = (1, 0) if flip_right else (0, 1)
        analysis.sites.append(Site(node, weight, x, axis_in, axis_out, left[1], out[1]))


def _add_bias(analysis: Analysis, node: ir.Node, out: list[Ref]) -> None:
    bias = analysis.refs(node.inputs[2])
    for ref, own in zip(reversed(out), reversed([analysis.axes.one] * (2 - len(bias)) + bias), strict=True):
        if not is_one(analysis, own):
            analysis.axes.unify(ref, own, f"{label(node)} adds its bias")
        elif not is_one(analysis, ref):
            analysis.axes.constrain(ref, Freedom.ORTHOGONAL_ONES, f"{label(node)} adds one number along the axis")


def add_channel_bias(analysis: Analysis, node: ir.Node, channels: Ref, bias: Ref, others: Sequence[Ref]) -> None:
    """A bias per channel is one number along every other axis."""
    analysis.axes.unify(channels, bias, f"{label(node)} adds its bias")
    for ref in others:
        analysis.axes.constrain(ref, Freedom.ORTHOGONAL_ONES, f"{label(node)} adds one number along the axis")


@rule("Gather")
def gather(analysis: Analysis, node: ir.Node) -> None:
    """A lookup: the axis that is indexed stays as it is, the others pass through."""
    data, indices = operands(node)
    refs = analysis.refs(data)
    axis = node.attributes.get_int("axis", 0) % len(refs)
    analysis.axes.constrain(refs[axis], Freedom.NONE, f"{label(node)} indexes it")
    analysis.set(node.outputs[0], [*refs[:axis], *analysis.refs(indices), *refs[axis + 1 :]])
    if is_weight(data) and indices.const_value is None and len(refs) == 2:
        analysis.sites.append(Site(node, data, None, axis, 1 - axis, None, refs[1 - axis]))
