"""Operators on what is known while compiling: constants, and integers made of the sizes of dynamic axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from tvm import tirx

from qcompile.backends.relax import known
from qcompile.shapes.arithmetic import FLOATS, INTEGERS, Arithmetic, Scalar, Undecided
from qcompile.shapes.evaluate import evaluate, measured

__all__ = ["fold", "measure"]

#: Arrays of more elements are computed by the artifact.
_LARGEST = 4096

#: Floats that hold every size: float16 ends at 65504, and is exact up to 2048.
_EXACT = ("float32", "float64")


def fold(node: ir.Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray] | None:
    """The results of an operator on known values, or ``None`` where it is left to the artifact."""
    operands = [None if array is None else array.astype(object) for array in inputs]
    results = evaluate(node, operands, ARITHMETIC, _LARGEST)
    if results is None:
        return None
    return [known.tidy(array, value.dtype) for array, value in zip(results, node.outputs, strict=True)]


def measure(node: ir.Node, shape: Sequence[known.Size]) -> np.ndarray:
    """The result of Shape or Size of a tensor of that shape."""
    return known.tidy(measured(node, len(shape), shape.__getitem__, ARITHMETIC), ir.DataType.INT64)


# ---- arithmetic on expressions -----------------------------------------------------------------------------------


def _integers(function: Callable[..., Scalar]) -> Callable[..., Scalar]:
    """An operator on sizes; TVM's analysis is one of integers, so that the artifact computes with floats."""

    def apply(*sizes: Scalar) -> Scalar:
        if any(isinstance(size, float) or known.is_float(size) for size in sizes):
            raise Undecided
        return known.simplify(function(*map(known.expression, sizes)))

    return apply


def _divided(function: Callable[[tirx.Expr, tirx.Expr], Scalar]) -> Callable[..., Scalar]:
    """An operator that divides: TVM stops at a zero."""

    def apply(a: tirx.Expr, b: tirx.Expr) -> Scalar:
        if known.holds(tirx.EQ(b, known.expression(0))):
            raise Undecided
        return function(a, b)

    return _integers(apply)


def _divide(a: tirx.Expr, b: tirx.Expr) -> Scalar:
    """The quotient towards zero; that of sizes is also the one towards -∞, of which TVM can prove more."""
    if known.holds(a >= 0) and known.holds(b > 0):
        return known.quotient([known.simplify(a)], [known.simplify(b)])
    return tirx.truncdiv(a, b)


def _cast(size: Scalar, dtype: ir.DataType) -> Scalar:
    """A size as another integer is the same; as a float it is one that still shows the size, for ``Range`` and back."""
    if not known.is_float(size) and dtype in INTEGERS:
        return size
    if not known.is_float(size) and dtype in FLOATS:
        return tirx.Cast(str(dtype.numpy()), known.expression(size))
    if isinstance(size, tirx.Cast) and dtype in INTEGERS and str(size.ty.dtype) in _EXACT:
        return size.value
    raise Undecided


#: Comparisons are proven, so that expressions are never truth values.
ARITHMETIC = Arithmetic({
    "Add": _integers(lambda a, b: a + b),
    "Sub": _integers(lambda a, b: a - b),
    "Mul": _integers(lambda a, b: a * b),
    "Div": _divided(_divide),
    "Mod": _divided(tirx.floormod),
    "Fmod": _divided(tirx.truncmod),
    "Max": _integers(tirx.max),
    "Min": _integers(tirx.min),
    "Neg": _integers(lambda a: -a),
    "Abs": _integers(tirx.abs),
    "Equal": _integers(lambda a, b: known.prove(tirx.EQ(a, b))),
    "Less": _integers(lambda a, b: known.prove(a < b)),
    "LessOrEqual": _integers(lambda a, b: known.prove(a <= b)),
    "Greater": _integers(lambda a, b: known.prove(a > b)),
    "GreaterOrEqual": _integers(lambda a, b: known.prove(a >= b)),
    "Cast": _cast,
})  # fmt: skip
