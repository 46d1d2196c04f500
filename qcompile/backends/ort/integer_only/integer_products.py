"""Products as integers: convolutions and matrices with constants in codes, values with each other, means of windows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qcompile.backends.ort.frame import again
from qcompile.backends.ort.integer_only.integer_graph import AnyNumber, Integers
from qcompile.backends.ort.integer_only.numbers import Number, Term
from qcompile.errors import TargetError
from qcompile.ir.graph import label
from qcompile.ir.required import constant, name_of, operand, shape_of

__all__ = ["convolution", "multiplied", "plain_constant", "pooled", "product"]

_INT32 = ir.DataType.INT32


def plain_constant(value: ir.Value | None) -> np.ndarray | None:
    """A constant in float64, such as a bias that a pair holds; ``None`` for another value."""
    if value is None:
        return None
    if value.const_value is not None:
        return constant(value).numpy().astype(np.float64)
    made = value.producer()
    if made is None or made.op_type != "DequantizeLinear" or operand(made, 0).const_value is None:
        return None
    codes, scale = (constant(operand(made, index)).numpy().astype(np.float64) for index in (0, 1))
    return codes * scale


def convolution(work: Integers, node: ir.Node) -> list[AnyNumber]:
    """``Conv``."""
    x, weight = work.codes(node, 0), work.weight(node, 1)
    if weight is None:
        raise TargetError(f"{label(node)} has no constant kernel in codes: it is not computed in integers")
    kept = {name: own.value for name, own in node.attributes.items()}
    made = work.op(node, "ConvInteger", _INT32, x.value, weight.value, work.zero(x), **kept)
    scale = np.broadcast_to(x.scale * weight.scale, weight.codes.shape[:1]).reshape(-1, *(1,) * (weight.codes.ndim - 2))
    return [_with_bias(work, node, Term(made, 0, scale), 2)]


def _with_bias(work: Integers, node: ir.Node, term: Term, index: int) -> Number:
    """Sums of products with a bias: in their own steps, or as a constant."""
    bias, shape = work.weight(node, index), term.scale.shape
    if bias is not None:
        steps = work.emit.constant(f"{name_of(bias.value)}.steps", bias.codes.reshape(shape))
        return Number((replace(term, value=work.op(node, "Add", _INT32, term.value, steps)),))
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None:
        return Number((term,))
    plain = plain_constant(value)
    if plain is None:
        raise TargetError(f"{label(node)} has a bias that is no constant: it is not computed in integers")
    return Number((term,), plain.reshape(shape) if plain.size == term.scale.size else plain)


def product(work: Integers, node: ir.Node) -> list[AnyNumber]:
    """``MatMul`` and ``Gemm``, with a constant or of two values."""
    turned = {index: node.attributes.get_int(name, 0) for index, name in ((0, "transA"), (1, "transB"))}
    terms: list[tuple[ir.Value, ir.Value | None]] = []
    scale = np.array(node.attributes.get_float("alpha", 1.0), np.float64)
    for index in (0, 1):
        weight = work.weight(node, index)
        if weight is None:
            term = work.codes(node, index)
            value = (
                work.op(node, "Transpose", term.value.dtype or _INT32, term.value, perm=[1, 0])
                if turned[index]
                else term.value
            )
            terms.append((value, work.zero(term)))
            scale = scale * term.scale
            continue
        if index == 0 and weight.scale.size > 1:
            raise TargetError(f"{label(node)} has its constant on the left: it is not computed in integers")
        codes = (
            work.emit.constant(f"{name_of(weight.value)}.turned", np.ascontiguousarray(weight.codes.T))
            if turned[index]
            else weight.value
        )
        if any(reader.op_type == "MatMulInteger" for reader, _ in codes.uses()):
            codes = again(work.emit, node, codes)
        terms.append((codes, None))
        scale = scale * weight.scale
    (a, zero_a), (b, zero_b) = terms
    made = work.op(node, "MatMulInteger", _INT32, a, b, zero_a, zero_b)
    return [_with_bias(work, node, Term(made, 0, scale), 2)]


def multiplied(work: Integers, node: ir.Node) -> Number:
    """``Mul`` of two values."""
    a, b = work.codes(node, 0), work.codes(node, 1)
    parts = []
    for term in (a, b):
        wide = work.op(node, "Cast", _INT32, term.value, to=int(_INT32))
        parts.append(
            work.op(node, "Sub", _INT32, wide, work.emit.constant("qcompile.zero", np.array(term.zero, np.int32)))
        )
    return Number((Term(work.op(node, "Mul", _INT32, *parts), 0, a.scale * b.scale),))


def pooled(work: Integers, node: ir.Node) -> list[AnyNumber]:
    """``AveragePool``: a convolution of each channel with ones."""
    x, get = work.codes(node, 0), node.attributes
    kernel, channels = list(get.get_ints("kernel_shape") or ()), shape_of(operand(node, 0))[1]
    padded = any(get.get_ints("pads") or ()) and not get.get_int("count_include_pad", 0)
    if padded or get.get_int("ceil_mode", 0) == 1 or not isinstance(channels, int):
        raise TargetError(f"{label(node)} divides by numbers of places that differ: it is not computed in integers")
    ones = work.emit.constant("qcompile.ones", np.ones((channels, 1, *kernel), np.int8))
    kept = {
        name: own.value
        for name, own in get.items()
        if name in ("auto_pad", "pads", "strides", "dilations", "kernel_shape")
    }
    made = work.op(node, "ConvInteger", _INT32, x.value, ones, work.zero(x), group=channels, **kept)
    return [Number((Term(made, 0, x.scale / np.prod(kernel)),))]
