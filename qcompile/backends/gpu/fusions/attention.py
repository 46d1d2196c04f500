"""``softmax(scale · q kᵀ + mask) v``, spelled out, becomes attention; heads repeated for it need not be repeated."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.backends.gpu.fusions.patterns import PRIVATE, commuted, made_by, number, put, sole_reader
from qcompile.ir.required import operand, operands

__all__ = ["fuse"]


def fuse(model: ir.Model) -> None:
    """Rewrite every attention of the main graph."""
    for node in list(model.graph):
        if node.op_type == "MatMul" and node.domain == "":
            _attention(node)
    for node in list(model.graph):
        if node.op_type == "Attention":
            _share_heads(node)


def _attention(node: ir.Node) -> None:
    weights, v = operands(node)
    softmax = made_by(_unguarded(weights), "Softmax")
    if softmax is None or v.const_value is not None or not _last_axis(softmax) or not _four(v):
        return
    scores, mask, scale = _single(operand(softmax, 0), softmax), None, 1.0
    add = made_by(scores, "Add")
    if add is not None:
        found = next(((s, m) for s, m in commuted(add) if _product(s) is not None), None)
        if found is None or sole_reader(found[0]) is not add:
            return
        scores, mask = found
    product, scale = _product(scores) or (None, 1.0)
    if product is None:
        return
    (q, left), (k, right) = (_unscaled(value) for value in operands(product))
    scale *= left * right
    if _four(q) and _four(k) and k.const_value is None:
        put(node, "Attention", [q, k, v, mask], scale=scale)


def _four(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 4


def _last_axis(node: ir.Node) -> bool:
    return node.attributes.get_int("axis", -1) in (-1, 3)


def _single(value: ir.Value, reader: ir.Node) -> ir.Value | None:
    return value if sole_reader(value) is reader else None


def _unguarded(weights: ir.Value) -> ir.Value:
    """What a guard lets through that puts 0 where the softmax of a row of minus infinity is no number."""
    where = made_by(weights, "Where")
    guard = None if where is None else made_by(where.inputs[0], "IsNaN")
    if where is None or guard is None:
        return weights
    source = operand(where, 2)
    return source if guard.inputs[0] is source and number(where.inputs[1]) == 0 else weights


def _product(value: ir.Value | None) -> tuple[ir.Node, float] | None:
    """The product of queries and keys behind a value, and the constant that scales it."""
    plain, scale = _unscaled(value) if value is not None else (None, 1.0)
    node = made_by(plain, "MatMul")
    return None if node is None or any(v.const_value is not None for v in operands(node)) else (node, scale)


def _unscaled(value: ir.Value) -> tuple[ir.Value, float]:
    """A value without the constant factor that it has, if nothing else reads it."""
    node = value.producer()
    if node is None or node.domain != "" or sole_reader(value) is None:
        return value, 1.0
    if node.op_type == "Mul":
        for x, factor in commuted(node):
            scale = number(factor)
            if scale is not None:
                return x, scale
    divisor = number(operand(node, 1)) if node.op_type == "Div" else None
    return (operand(node, 0), 1.0 / divisor) if divisor else (value, 1.0)


# ---- grouped queries ---------------------------------------------------------------------------------------------


def _share_heads(node: ir.Node) -> None:
    if node.domain == PRIVATE or len(node.inputs) < 3 or any(value is not None for value in node.inputs[4:]):
        return
    k, v = (_before_repeat(operand(node, i)) for i in (1, 2))
    if k is not None and v is not None:
        node.replace_input_with(1, k)
        node.replace_input_with(2, v)


def _before_repeat(value: ir.Value) -> ir.Value | None:
    """``[b, g, l, d]`` behind ``[b, g, 1, l, d] → [b, g, n, l, d] → [b, g·n, l, d]``."""
    reshape = made_by(value, "Reshape")
    expand = made_by(reshape.inputs[0], "Expand") if reshape is not None else None
    unsqueeze = made_by(expand.inputs[0], "Unsqueeze") if expand is not None else None
    if expand is None or unsqueeze is None or number(unsqueeze.inputs[1] if len(unsqueeze.inputs) > 1 else None) != 2:
        return None
    source = operand(unsqueeze, 0)
    own, wide, merged = source.shape, expand.outputs[0].shape, value.shape
    if own is None or wide is None or merged is None or (len(own), len(wide), len(merged)) != (4, 5, 4):
        return None
    sizes = [size for size in (own[1], wide[2], merged[1], own[3], merged[3]) if isinstance(size, int)]
    if len(sizes) < 5:
        return None
    groups, repeat, heads, width, kept = sizes
    return source if groups * repeat == heads and width == kept else None
