"""Softmax and norms in integers: Shiftmax and I-LayerNorm (I-ViT, arXiv:2207.01405), in 64 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.backends.ort.integer_only.integer_graph import AnyNumber, Integers
from qcompile.backends.ort.integer_only.numbers import Number, Term
from qcompile.errors import TargetError
from qcompile.ir.graph import label
from qcompile.ir.required import constant, operand, rank_of, shape_of

__all__ = ["norm", "shiftmax"]

#: The steps of powers of two below which an exponential counts as zero.
_SHIFTS = 15

#: Bits of reciprocals of sums, and of what is handed on.
_RECIPROCAL, _PARTS = 46, 16

#: Steps of Newton's method: from a start within a factor of two, each doubles the bits that are right.
_STEPS = 6

_INT64, _UINT64 = ir.DataType.INT64, ir.DataType.UINT64


class _Whole:
    """Writes arithmetic on 64-bit integers in front of an operator."""

    def __init__(self, work: Integers, node: ir.Node) -> None:
        self.work, self.node = work, node

    def at(self, number: int, dtype: type = np.int64) -> ir.Value:
        """A constant."""
        return self.work.emit.constant(f"qcompile.{number}", np.array(number, dtype))

    def do(self, op: str, *inputs: ir.Value | int, **attributes: Any) -> ir.Value:
        """An operator on values and constants."""
        operands = [self.at(value) if isinstance(value, int) else value for value in inputs]
        return self.work.emit.op(self.node, op, *operands, **attributes)

    def shifted(self, value: ir.Value, by: ir.Value | int, direction: str) -> ir.Value:
        """A value that is not negative, shifted."""
        shift = self.at(by, np.uint64) if isinstance(by, int) else self.do("Cast", by, to=int(_UINT64))
        return self.do(
            "Cast",
            self.do("BitShift", self.do("Cast", value, to=int(_UINT64)), shift, direction=direction),
            to=int(_INT64),
        )

    def largest(self, value: ir.Value) -> ir.Value:
        """The largest along the last axis, which stays."""
        if self.work.emit.opset >= 18:
            return self.do("ReduceMax", value, self.axis(-1), keepdims=1)
        return self.do("ReduceMax", value, axes=[-1], keepdims=1)

    def axis(self, axis: int) -> ir.Value:
        """A list of one axis."""
        return self.work.emit.constant(f"qcompile.axis_{axis}", np.array([axis], np.int64))

    def total(self, value: ir.Value, axis: int) -> ir.Value:
        """Sums along an axis, which stays."""
        return self.do("ReduceSum", value, self.axis(axis), keepdims=1)


def shiftmax(work: Integers, node: ir.Node) -> list[AnyNumber]:
    """``Softmax``: powers of two by shifts, and a reciprocal of their sum (section 3.3).

    Distances ``d`` from the largest code are taken times log2 e as ``d + d/2 - d/16``; what is left of whole powers is
    linear between them.
    """
    x, axis, whole = work.codes(node, 0), node.attributes.get_int("axis", -1), _Whole(work, node)
    codes = whole.do("Cast", x.value, to=int(_INT64))
    if axis not in (-1, rank_of(operand(node, 0)) - 1):
        raise TargetError(f"{label(node)} is not along the last axis: it is not computed in integers")
    largest = whole.largest(codes)
    distance = whole.do("Sub", largest, codes)
    half, part = (whole.do("Div", whole.do("Add", distance, n - 1), n) for n in (2, 16))
    scaled = whole.do("Sub", whole.do("Add", distance, half), part)
    one = int(np.ceil(1 / float(x.scale.reshape(()))))
    scaled = whole.do("Min", scaled, _SHIFTS * one)
    powers = whole.do("Div", scaled, one)
    rest = whole.do("Sub", scaled, whole.do("Mul", powers, one))
    linear = whole.do("Sub", one, whole.do("Div", whole.do("Add", rest, 1), 2))
    exponentials = whole.shifted(linear, whole.do("Sub", _SHIFTS, powers), "LEFT")
    factor = whole.do("Div", 1 << _RECIPROCAL, whole.total(exponentials, -1))
    parts = whole.shifted(whole.do("Mul", exponentials, factor), _RECIPROCAL - _PARTS, "RIGHT")
    return [Number((Term(parts, 0, np.array(2.0**-_PARTS)),))]


def norm(work: Integers, node: ir.Node) -> list[AnyNumber]:
    """``LayerNormalization`` and ``RMSNormalization`` along the last axis: an integer square root by Newton's method.

    Distances from the mean are taken times the number of features, so that no mean is rounded.
    """
    x, whole = work.codes(node, 0), _Whole(work, node)
    size, axis = shape_of(operand(node, 0))[-1], node.attributes.get_int("axis", -1)
    if axis not in (-1, rank_of(operand(node, 0)) - 1) or not isinstance(size, int):
        raise TargetError(f"{label(node)} is not along a last axis of known size: it is not computed in integers")
    centered = whole.do("Sub", whole.do("Cast", x.value, to=int(_INT64)), x.zero)
    centers = node.op_type.startswith("Layer")
    if centers:
        centered = whole.do("Sub", whole.do("Mul", centered, size), whole.total(centered, -1))
    said = node.attributes.get_float("epsilon", 1e-5) if not node.domain else float(constant(operand(node, -1)).numpy())
    epsilon = said * size / float(x.scale.reshape(())) ** 2 * (size**2 if centers else 1)
    squares = whole.do("Add", whole.total(whole.do("Mul", centered, centered), -1), max(round(epsilon), 1))
    parts = whole.do("Div", whole.do("Mul", centered, 1 << _PARTS), _root(whole, squares))
    number = Number((Term(parts, 0, np.array(size**0.5 * 2.0**-_PARTS)),))
    scale, shift = _affine(node, centers)
    number = number.scaled(scale)
    return [Number(number.terms, number.offset + shift)]


def _affine(node: ir.Node, shifts: bool) -> tuple[np.ndarray, np.ndarray]:
    """The scale and the shift of a norm."""
    values = [operand(node, 1), node.inputs[2] if shifts and len(node.inputs) > 2 else None]
    if any(value is not None and value.const_value is None for value in values):
        raise TargetError(f"{label(node)} has a scale that is no constant: it is not computed in integers")
    scale, shift = (np.zeros(()) if value is None else constant(value).numpy().astype(np.float64) for value in values)
    return scale, shift


def _root(whole: _Whole, value: ir.Value) -> ir.Value:
    """The integer square root of a value above zero: ``k ← (k + ⌊v/k⌋) >> 1`` from a power of two above it, falling."""
    column = whole.do("Unsqueeze", value, whole.axis(-1))
    powers = whole.work.emit.constant("qcompile.fourths", 4 ** np.arange(31, dtype=np.int64))
    above = whole.do("Cast", whole.do("GreaterOrEqual", column, powers), to=int(_INT64))
    bits = whole.do("Squeeze", whole.total(above, -1), whole.axis(-1))
    root = whole.do("Gather", whole.work.emit.constant("qcompile.halves", 2 ** np.arange(32, dtype=np.int64)), bits)
    for _ in range(_STEPS):
        root = whole.do("Min", root, whole.do("Div", whole.do("Add", root, whole.do("Div", value, root)), 2))
    return root
