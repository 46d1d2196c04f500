"""``x · cos + (-x₂, x₁) · sin`` with the halves cut and swapped by hand becomes one rotary embedding."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.backends.gpu.fusions.patterns import commuted, made_by, number, put
from qcompile.ir.required import operand, operands

__all__ = ["fuse"]


def fuse(model: ir.Model) -> None:
    """Rewrite every rotary embedding of the main graph."""
    for node in list(model.graph):
        if node.op_type == "Add" and node.domain == "":
            _rotary(node)


def _rotary(node: ir.Node) -> None:
    for plain, turned in commuted(node):
        left, right = made_by(plain, "Mul"), made_by(turned, "Mul")
        if left is None or right is None:
            continue
        for swapped, sin in commuted(right):
            x = _unswapped(swapped)
            if x is None or x not in left.inputs:
                continue
            cos = next((value for value in operands(left) if value is not x), x)
            if _fits(x, cos) and _fits(x, sin):
                put(node, "Rotary", [x, cos, sin])
                return


def _fits(x: ir.Value, angle: ir.Value) -> bool:
    """``x [batch, heads, length, size]`` with angles of every element, for all heads at once."""
    if x.shape is None or angle.shape is None or len(x.shape) != 4 or not 2 <= len(angle.shape) <= 4:
        return False
    size, width = x.shape[-1], angle.shape[-1]
    return isinstance(size, int) and size == width and angle.shape[-2] == x.shape[-2]


def _unswapped(value: ir.Value) -> ir.Value | None:
    """``x`` behind ``concat(-x₂, x₁)``."""
    concat = made_by(value, "Concat")
    if concat is None or len(concat.inputs) != 2 or concat.attributes.get_int("axis") not in (-1, 3):
        return None
    negated = made_by(concat.inputs[0], "Neg")
    if negated is None:
        return None
    second, first = _half(operand(negated, 0)), _half(operand(concat, 1))
    if second is None or first is None or second[0] is not first[0] or (first[1], second[1]) != (0, 1):
        return None
    return first[0]


def _half(value: ir.Value) -> tuple[ir.Value, int] | None:
    """The value that one half is cut from along the last axis, and which half it is."""
    node = value.producer()
    if node is None or node.domain != "" or node.inputs[0] is None or node.inputs[0].shape is None:
        return None
    source, size = node.inputs[0], node.inputs[0].shape[-1]
    if not isinstance(size, int) or size % 2 or value.shape is None or value.shape[-1] != size // 2:
        return None
    if node.op_type == "Split" and len(node.outputs) == 2 and node.attributes.get_int("axis", 0) in (-1, 3):
        return source, list(node.outputs).index(value)
    if node.op_type == "Slice" and len(node.inputs) > 3 and number(node.inputs[3]) in (-1, 3):
        start = number(node.inputs[1])
        return (source, int(start != 0)) if start in (0, size // 2, -(size // 2)) else None
    return None
