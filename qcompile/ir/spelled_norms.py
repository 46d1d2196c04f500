"""Recognizes normalizations over the last axis that an exporter spelled out.

``x / sqrt(mean(x²) + ε)``, with a scale, a centering and a shift. The product may be distributed over the centering,
as TensorFlow writes it: ``x·s + (β - mean(x)·s)`` with ``s = γ / sqrt(var(x) + ε)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qcompile.ir.graph import is_float
from qcompile.ir.required import operand, optional

__all__ = ["SpelledNorm", "find_norm"]


@dataclass(frozen=True)
class SpelledNorm:
    """A norm in pieces; ``output`` is the last value of it."""

    x: ir.Value
    epsilon: float
    output: ir.Value
    scale: ir.Value | None
    shift: ir.Value | None
    centered: bool


def find_norm(node: ir.Node) -> SpelledNorm | None:
    """The norm whose core the node is: the last product or sum that its statistics enter."""
    return _match_quotient(node) or _match_distributed(node)


def _match_quotient(node: ir.Node) -> SpelledNorm | None:
    """The norm whose core the node is: what divides ``x`` by the root of its mean square over its last axis."""
    for x, factor in _orders(node) if not node.domain and node.op_type in ("Mul", "Div") else ():
        divided = node.op_type == "Div"
        variance, scale = (_match_root(factor, divided=True), None) if divided else _match_scaled_root(factor, x)
        if variance is not None and _root_of_square(_mean_of(variance[0]), x):
            inner = _centered(x)
            output, scale, shift = _match_affine(node.outputs[0], scale, inner is not None)
            return SpelledNorm(x if inner is None else inner, variance[1], output, scale, shift, inner is not None)
    return None


def _match_distributed(node: ir.Node) -> SpelledNorm | None:
    """The norm that the node is the last of: ``x·s + (β - mean(x)·s)``."""
    if node.domain or node.op_type not in ("Add", "Sub"):
        return None
    for scaled, rest in _orders(node):
        for x, s in _orders(_producer(scaled, "Mul")):
            root, scale = _match_scaled_root(s, x)
            if root is None or not _centered_square(_mean_of(root[0]), x):
                continue
            shift = _match_rest(rest, x, s, added=node.op_type == "Add")
            if shift is not None:
                return SpelledNorm(x, root[1], node.outputs[0], scale, shift[0], centered=True)
    return None


def _orders(node: ir.Node | None) -> list[tuple[ir.Value, ir.Value]]:
    """The operands of an operator, in both orders where they may be exchanged."""
    a, b = node.inputs if node is not None and len(node.inputs) == 2 else (None, None)
    if node is None or a is None or b is None:
        return []
    return [(a, b)] if node.op_type in ("Sub", "Div") else [(a, b), (b, a)]


def _match_scaled_root(s: ir.Value, x: ir.Value) -> tuple[tuple[ir.Value, float] | None, ir.Value | None]:
    """``((variance, ε), γ)`` if ``s`` is ``γ / sqrt(variance + ε)``."""
    for root, scale in _orders(_producer(s, "Mul")):
        if _is_vector(scale, x) and (found := _match_root(root, divided=False)) is not None:
            return found, scale
    return _match_root(s, divided=False), None


def _match_rest(rest: ir.Value, x: ir.Value, s: ir.Value, *, added: bool) -> tuple[ir.Value | None] | None:
    """``(β,)`` if the value, added or subtracted, is ``β - mean(x)·s``; β may be missing."""
    if _is_product(rest, x, s, negative=added):
        return (None,)
    node = _uncast(rest).producer()
    if not added or node is None or node.domain or node.op_type not in ("Add", "Sub"):
        return None
    for shift, product in _orders(node):
        if _is_vector(shift, x) and _is_product(product, x, s, negative=node.op_type == "Add"):
            return (shift,)
    return None


def _is_product(value: ir.Value | None, x: ir.Value, s: ir.Value, *, negative: bool) -> bool:
    """Whether a value is ``mean(x)·s``, or its negative, wherever the sign stands."""
    if negative and (node := _producer(value, "Neg")) is not None:
        return _is_product(node.inputs[0], x, s, negative=False)
    for mean, other in _orders(_producer(value, "Mul")):
        node = _producer(mean, "Neg") if negative else None
        inner = node.inputs[0] if node is not None else mean
        if _alike(other, s) and (node is not None) == negative and (source := _mean_of(inner)) is not None:
            return _alike(source, x)
    return False


def _centered_square(squared: ir.Value | None, x: ir.Value) -> bool:
    """Whether a value is ``(x - mean(x))²``."""
    node = _maker(squared)
    difference = optional(node, 0) if node is not None else None
    inner = _centered(difference)
    return inner is not None and _alike(inner, x) and _root_of_square(squared, difference)


def _match_root(value: ir.Value | None, *, divided: bool) -> tuple[ir.Value, float] | None:
    """``(mean square, ε)`` if ``value`` is the root of their sum (or its reciprocal, unless ``divided``)."""
    producer = _maker(value)
    if producer is None or producer.domain != "":
        return None
    if divided:
        return _match_sum(producer.inputs[0]) if producer.op_type == "Sqrt" or _power(producer) == 0.5 else None
    if _power(producer) == -0.5:
        return _match_sum(producer.inputs[0])
    if producer.op_type == "Reciprocal":
        return _match_root(producer.inputs[0], divided=True)
    if producer.op_type == "Div" and _scalar(producer.inputs[0]) == 1.0:
        return _match_root(producer.inputs[1], divided=True)
    return None


def _match_sum(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    for mean, constant in _orders(_producer(value, "Add")):
        epsilon = _scalar(constant)
        if epsilon is not None:
            return mean, epsilon
    return None


def _power(node: ir.Node) -> float | None:
    return _scalar(node.inputs[1]) if node.op_type == "Pow" else None


def _root_of_square(value: ir.Value | None, x: ir.Value | None) -> bool:
    """Whether a value is ``x²``."""
    node = _maker(value)
    if node is None:
        return False
    if node.op_type == "Pow" and _scalar(node.inputs[1]) == 2.0:
        return _alike(node.inputs[0], x)
    return node.op_type == "Mul" and _alike(node.inputs[0], x) and _alike(node.inputs[1], x)


def _centered(value: ir.Value | None) -> ir.Value | None:
    """``x`` if the value is ``x - mean(x)``."""
    return next((x for x, mean in _orders(_producer(value, "Sub")) if _alike(_mean_of(mean), x)), None)


def _match_affine(
    value: ir.Value, scale: ir.Value | None, centered: bool
) -> tuple[ir.Value, ir.Value | None, ir.Value | None]:
    """Follow ``value`` through the constant scale, unless it has one, and the shift that its only reader applies."""
    if scale is None:
        value, scale = _constant_operand(value, "Mul")
    if scale is None or not centered:
        return value, scale, None
    value, shift = _constant_operand(value, "Add")
    return value, scale, shift


def _constant_operand(value: ir.Value, op: str) -> tuple[ir.Value, ir.Value | None]:
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return value, None
    node, index = next(iter(uses))
    if node.op_type != op or node.domain != "":
        return value, None
    other = node.inputs[1 - index]
    return (node.outputs[0], other) if _is_vector(other, value) else (value, None)


def _is_vector(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether a value is a constant along the last axis of ``x`` alone."""
    if value is None or value.const_value is None or value.shape is None or x.shape is None:
        return False
    if not 0 < len(value.shape) <= len(x.shape):
        return False
    return value.shape[-1] == x.shape[-1] == value.const_value.size


def _producer(value: ir.Value | None, op: str) -> ir.Node | None:
    node = _maker(value)
    return node if node is not None and node.op_type == op and node.domain == "" else None


def _maker(value: ir.Value | None) -> ir.Node | None:
    """The operator that makes a value, before casts."""
    return _uncast(value).producer() if value is not None else None


def _uncast(value: ir.Value) -> ir.Value:
    """The value before casts between floating-point types."""
    node = value.producer()
    while node is not None and node.op_type == "Cast" and is_float(value):
        source = operand(node, 0)
        if not is_float(source):
            break
        value, node = source, source.producer()
    return value


def _alike(a: ir.Value | None, b: ir.Value | None) -> bool:
    return a is not None and b is not None and _uncast(a) is _uncast(b)


def _scalar(value: ir.Value | None) -> float | None:
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(-1)[0])


def _mean_of(value: ir.Value | None) -> ir.Value | None:
    """The value of which another is the mean over the last axis, which stays as an axis of size one."""
    node = _maker(value)
    if node is None or node.domain:
        return None
    source = node.inputs[0]
    rank = len(source.shape) if source is not None and source.shape is not None else None
    if node.op_type == "GlobalAveragePool":
        return source if rank == 3 else None
    return source if node.op_type == "ReduceMean" and _over_last_axis(node, rank) else None


def _over_last_axis(node: ir.Node, rank: int | None) -> bool:
    if node.attributes.get_int("keepdims", 1) != 1:
        return False
    if "axes" in node.attributes:
        axes = list(node.attributes.get_ints("axes"))
    elif len(node.inputs) > 1 and node.inputs[1] is not None and node.inputs[1].const_value is not None:
        axes = [int(i) for i in node.inputs[1].const_value.numpy().reshape(-1)]
    else:
        return False
    return axes == [-1] or (rank is not None and axes == [rank - 1])
