"""Quantized operators: rounding fixes the basis, up to what permutes elements that are rounded alike."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.analysis.axes import Mode
from qcompile.analysis.rules.elementwise import is_one
from qcompile.analysis.spaces import Analysis, rule
from qcompile.ir.graph import label
from qcompile.ir.required import operand, optional
from qcompile.transforms.freedom import Freedom

__all__: list[str] = []


@rule("QuantizeLinear", "DequantizeLinear")
@rule("QuantizeLinear", "DequantizeLinear", domain="com.microsoft")
def grid(analysis: Analysis, node: ir.Node) -> None:
    """Rounds each element to (or reads it from) a grid: one for all, one for each place on an axis, one for blocks."""
    refs = list(analysis.refs(node.inputs[0]))
    axis = node.attributes.get_int("axis", 1) % max(len(refs), 1)
    for ref in refs:
        analysis.axes.constrain(ref, Freedom.PERMUTATION, f"{label(node)} rounds each element")
    for value in node.inputs[1:]:
        own = analysis.refs_or_none(value) or []
        wide = [ref for ref in own if not is_one(analysis, ref)]
        if len(own) == 1 and wide and analysis.axes.size(wide[0]) == analysis.axes.size(refs[axis]):
            analysis.axes.unify(wide[0], refs[axis].through(Mode.PLAIN), f"{label(node)} has a grid for each place")
        elif wide:
            analysis.freeze([node.inputs[0], value], f"{label(node)} has a grid for each block")
    analysis.set(node.outputs[0], refs)


@rule("DynamicQuantizeLinear")
def dynamic_grid(analysis: Analysis, node: ir.Node) -> None:
    """One grid from the least to the largest element."""
    refs = list(analysis.refs(node.inputs[0]))
    for ref in refs:
        analysis.axes.constrain(ref, Freedom.PERMUTATION, f"{label(node)} rounds each element")
    analysis.set(node.outputs[0], refs)
    for output in node.outputs[1:]:
        analysis.set(output, [])


@rule("MatMulNBits", "MatMulBnb4", domain="com.microsoft")
def packed_product(analysis: Analysis, node: ir.Node) -> None:
    """A product with a packed weight: rows are linear, what the weight reads and writes stays as it was packed."""
    refs = list(analysis.refs(node.inputs[0]))
    analysis.axes.constrain(refs[-1], Freedom.NONE, f"{label(node)} has a packed weight")
    analysis.freeze(node.inputs[1:], f"{label(node)} has a packed weight")
    if optional(node, 5) is not None:
        for ref in refs[:-1]:
            analysis.axes.constrain(ref, Freedom.ORTHOGONAL_ONES, f"{label(node)} adds one number along the axis")
    written = analysis.axes.frozen(node.attributes.get_int("N"), f"{label(node)} has a packed weight")
    analysis.set(node.outputs[0], [*refs[:-1], written])


@rule("GatherBlockQuantized", domain="com.microsoft")
def packed_lookup(analysis: Analysis, node: ir.Node) -> None:
    """A lookup in a packed table: what it writes stays as it was packed."""
    data, indices = (analysis.refs(value) for value in node.inputs[:2])
    axis = node.attributes.get_int("gather_axis", 0) % len(data)
    analysis.freeze([node.inputs[0], *node.inputs[2:]], f"{label(node)} has a packed table")
    packed = 8 // node.attributes.get_int("bits", 4) if operand(node, 0).dtype == ir.DataType.UINT8 else 1
    sizes = [analysis.axes.size(ref) for ref in data]
    sizes[-1] = None if sizes[-1] is None else sizes[-1] * packed
    kept = [analysis.axes.frozen(size, f"{label(node)} has a packed table") for size in sizes]
    analysis.set(node.outputs[0], [*kept[:axis], *indices, *kept[axis + 1 :]])
