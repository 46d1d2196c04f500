"""Arithmetic on arrays of scalars: numbers as ONNX computes them, other scalars as their owner does.

A scalar is a Python number, or whatever stands for one that is known at run time alone: source text, an expression, an
axis. ``Arithmetic`` computes numbers itself, so that they fold alike for everyone; its user hands in one function per
operator for operands that are not all numbers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = [
    "FLOATS", "INTEGERS", "OPERATORS", "Arithmetic", "Scalar", "Undecided", "as_array", "is_number", "settled",
]  # fmt: skip

#: A Python number, or a scalar of the user's own.
Scalar = Any

FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
INTEGERS = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.INT16, ir.DataType.INT8,
            ir.DataType.UINT64, ir.DataType.UINT32, ir.DataType.UINT16, ir.DataType.UINT8)  # fmt: skip


class Undecided(Exception):
    """A question whose answer depends on what is known at run time alone, or on the runtime."""


def is_number(item: Scalar) -> bool:
    """Whether a scalar is known."""
    return isinstance(item, int | float)


def as_array(result: Any) -> np.ndarray:
    """An array of objects, also where NumPy returned the one element of an array without axes."""
    if isinstance(result, np.ndarray):
        return result
    array = np.empty((), object)
    array[()] = result
    return array


# ---- numbers -----------------------------------------------------------------------------------------------------


def _divide(a: int, b: int) -> int:
    """The quotient of integers, towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _rest(a: float, b: float) -> float:
    """The rest of that division: it has the sign of the dividend."""
    return a - b * _divide(a, b) if isinstance(a, int) and isinstance(b, int) else math.fmod(a, b)


def _power(a: float, b: float) -> float:
    """A power in the type of its base."""
    if isinstance(a, int) and b not in range(64):  # a fraction, or too large for any integer
        raise Undecided
    power = a ** (int(b) if isinstance(a, int) else b)
    if isinstance(power, complex):
        raise Undecided
    return power


def _extreme(choose: Callable[[float, float], float]) -> Callable[[float, float], float]:
    """The larger or smaller number; NaN where one of them is."""
    return lambda a, b: a + b if a != a or b != b else choose(a, b)


_NUMBERS: dict[str, Callable[..., Scalar]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": _divide,
    "TrueDiv": operator.truediv,  # Div of floats
    "Mod": operator.mod,
    "Fmod": _rest,  # Mod with that attribute
    "Pow": _power,
    "Max": _extreme(max),
    "Min": _extreme(min),
    "Equal": operator.eq,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "And": lambda a, b: a and b,
    "Or": lambda a, b: a or b,
    "Not": operator.not_,
    "Neg": operator.neg,
    "Abs": abs,
    "Sqrt": math.sqrt,
    "Exp": math.exp,
    "Log": math.log,
    "Reciprocal": lambda a: 1.0 / a,
    "Floor": lambda a: float(math.floor(a)),
    "Ceil": lambda a: float(math.ceil(a)),
    "Where": lambda choice, a, b: a if choice else b,
}

#: What an arithmetic may be handed a function for: ONNX's elementwise operators, with two names for each kind of Div
#: and of Mod. ``Cast`` takes a scalar and its new type.
OPERATORS = (*_NUMBERS, "Cast")


def _converted(number: float, dtype: ir.DataType) -> Scalar:
    """A number in a type of ONNX.

    Raises:
        Undecided: if it does not fit: C++ leaves open what becomes of it.
    """
    if dtype == ir.DataType.BOOL:
        return bool(number)
    if dtype in FLOATS:
        with np.errstate(over="ignore"):
            return float(np.array(number).astype(dtype.numpy()))
    whole = int(number)
    if dtype not in INTEGERS or not np.iinfo(dtype.numpy()).min <= whole <= np.iinfo(dtype.numpy()).max:
        raise Undecided
    return whole


def settled(array: np.ndarray, dtype: ir.DataType | None) -> np.ndarray:
    """The entries with their numbers rounded to the type that the graph states.

    Raises:
        Undecided: if a number does not fit into it, or no type says how to round one.
    """

    def one(item: Scalar) -> Scalar:
        if dtype is None and isinstance(item, float):
            raise Undecided
        return _converted(item, dtype) if dtype is not None and is_number(item) else item

    return as_array(np.frompyfunc(one, 1, 1)(array))


# ---- scalars -----------------------------------------------------------------------------------------------------


class Arithmetic:
    """Elementwise operators over arrays of scalars, which broadcast.

    Args:
        symbolic: by name of an operator, what it makes of scalars that are not all numbers; of ``Where``, the choice
            is none. An operator that is not there is undecided for such scalars.
    """

    def __init__(self, symbolic: Mapping[str, Callable[..., Scalar]]) -> None:
        self._symbolic = symbolic

    def __getitem__(self, op: str) -> Callable[..., np.ndarray]:
        """The operator of that name, from arrays of objects to one."""

        def one(*items: Scalar) -> Scalar:
            decisive = items[:1] if op == "Where" else items
            return (_NUMBERS[op] if all(map(is_number, decisive)) else self._own(op))(*items)

        return lambda *arrays: as_array(np.frompyfunc(one, len(arrays), 1)(*arrays))

    def cast(self, array: np.ndarray, dtype: ir.DataType) -> np.ndarray:
        """Entries in another type."""

        def one(item: Scalar) -> Scalar:
            return _converted(item, dtype) if is_number(item) else self._own("Cast")(item, dtype)

        return as_array(np.frompyfunc(one, 1, 1)(array))

    def _own(self, op: str) -> Callable[..., Scalar]:
        if op not in self._symbolic:
            raise Undecided
        return self._symbolic[op]
