"""Float values of a graph as integers: sums of scaled integers, and functions of the codes of one value.

A value stays what it is until it is quantized: then dyadic multipliers bring all terms to the new scale at once,
``q = (Σ mᵢ·aᵢ + c + 2^(e-1)) >> e`` in 64 bits with ``2^30 <= m <= 2^31`` (HAWQ-V3, arXiv:2011.10680, section 3), or a
table of 256 codes is looked up.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from qcompile.backends.ort.emitter import Emitter
from qcompile.errors import TargetError
from qcompile.ir.required import name_of

__all__ = ["Joined", "Number", "Table", "Term", "dyadic", "quantize", "table_of"]

_BITS = 30
_MOST = 60
_UINT64 = int(ir.DataType.UINT64)


@dataclass(frozen=True)
class Term:
    """``scale · (value - zero)``.

    Args:
        value: integers of 8 or 32 bits.
        zero: the code of zero.
        scale: float64, of a shape that broadcasts to that of the value.
    """

    value: ir.Value
    zero: int
    scale: np.ndarray

    @property
    def codes(self) -> bool:
        """Whether it has 8 bits and one scale."""
        return self.value.dtype in (ir.DataType.UINT8, ir.DataType.INT8) and self.scale.size == 1


@dataclass(frozen=True)
class Number:
    """A sum of terms and a constant, clipped."""

    terms: tuple[Term, ...]
    offset: np.ndarray = field(default_factory=lambda: np.zeros(()))
    low: float = -np.inf
    high: float = np.inf

    @property
    def plain(self) -> bool:
        """Whether it is one term and nothing else."""
        return len(self.terms) == 1 and not self.offset.any() and self.low == -np.inf and self.high == np.inf

    def scaled(self, by: np.ndarray) -> Number:
        """The product with a constant."""
        if self.low > -np.inf or self.high < np.inf:
            raise TargetError("a clipped sum is scaled before it is rounded")
        terms = tuple(replace(term, scale=term.scale * by) for term in self.terms)
        return Number(terms, self.offset * by)

    def clipped(self, low: float, high: float) -> Number:
        """The same within bounds."""
        return replace(
            self, low=float(np.clip(low, self.low, self.high)), high=float(np.clip(high, self.low, self.high))
        )


@dataclass(frozen=True)
class Table:
    """A function of codes: ``values[code - smallest code]``, float64."""

    codes: ir.Value
    values: np.ndarray


@dataclass(frozen=True)
class Joined:
    """Values one behind the other along an axis."""

    parts: tuple[Number | Table, ...]
    axis: int


def table_of(number: Number | Table | Joined) -> Table | None:
    """A value as a function of codes, if it is one of a single term in codes."""
    if isinstance(number, Table):
        return number
    if isinstance(number, Joined) or len(number.terms) != 1 or not number.terms[0].codes or number.offset.size != 1:
        return None
    (term,) = number.terms
    values = (np.arange(256) + _first(term.value) - term.zero) * float(term.scale.reshape(())) + float(
        number.offset.reshape(())
    )
    return Table(term.value, values.clip(number.low, number.high))


def _first(codes: ir.Value) -> int:
    return -128 if codes.dtype == ir.DataType.INT8 else 0


def dyadic(ratios: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Integers ``m`` and exponents ``e`` with ``ratio = m / 2^e``, for ratios of one sum: the largest has 31 bits."""
    largest = np.maximum.reduce(np.broadcast_arrays(*map(np.abs, ratios)))
    exponents = np.clip(_BITS - np.floor(np.log2(np.maximum(largest, 2.0**-_MOST))), 1, _MOST).astype(np.int64)
    return [np.asarray(np.round(np.ldexp(ratio, exponents)).astype(np.int64)) for ratio in ratios], np.asarray(
        exponents
    )


def quantize(
    emit: Emitter, before: ir.Node, number: Number | Table | Joined, scale: float, zero: int, dtype: ir.DataType,
    hint: str,
) -> ir.Value:  # fmt: skip
    """The codes of a value in a static range, computed in integers."""
    lowest = -128 if dtype == ir.DataType.INT8 else 0
    if isinstance(number, Joined):
        parts = [quantize(emit, before, part, scale, zero, dtype, f"{hint}/{i}") for i, part in enumerate(number.parts)]
        return _typed(emit.op(before, "Concat", *parts, axis=number.axis, hint=hint), dtype)
    if isinstance(number, Table):
        codes = (np.round(number.values / scale) + zero).clip(lowest, lowest + 255).astype(dtype.numpy())
        places = _cast(emit, before, number.codes, ir.DataType.INT32)
        if _first(number.codes):
            places = emit.op(before, "Add", places, emit.constant("qcompile.first", np.array(128, np.int32)))
        return _typed(emit.op(before, "Gather", emit.constant(f"{hint}.table", codes), places, hint=hint), dtype)
    first = number.terms[0]
    same = number.plain and first.codes and first.value.dtype == dtype and first.zero == zero
    if same and float(first.scale.reshape(())) == scale:
        return first.value
    low, high = _bounds(number, scale, zero, lowest)
    return _rescaled(emit, before, number, scale, zero, low, high, dtype, hint)


def _bounds(number: Number, scale: float, zero: int, lowest: int) -> tuple[int, int]:
    """The smallest and the largest code."""
    low, high = (np.clip(np.round(end / scale) + zero, lowest, lowest + 255) for end in (number.low, number.high))
    return int(low), int(high)


def _rescaled(
    emit: Emitter, before: ir.Node, number: Number, scale: float, zero: int, low: int, high: int, dtype: ir.DataType,
    hint: str,
) -> ir.Value:  # fmt: skip
    """The sum at the new scale, rounded and clipped, in 64 bits, as steps above the smallest code."""
    multipliers, exponents = dyadic([term.scale / scale for term in number.terms])
    start = np.round(np.ldexp(number.offset / scale + (zero - low), exponents)).astype(np.int64) + (
        1 << (exponents - 1)
    )
    total: ir.Value | None = None
    for term, by in zip(number.terms, multipliers, strict=True):
        start = start - term.zero * by
        part = _cast(emit, before, term.value, ir.DataType.INT64)
        part = emit.op(before, "Mul", part, emit.constant(f"{hint}.multiplier", by))
        total = part if total is None else emit.op(before, "Add", total, part)
    total = emit.op(before, "Add", total, emit.constant(f"{hint}.start", np.asarray(start)))
    total = emit.op(before, "Max", total, emit.constant("qcompile.none", np.array(0, np.int64)))
    shifts = emit.op(
        before, "Cast", emit.constant(f"{hint}.shifts", np.asarray(exponents.astype(np.uint8))), to=_UINT64
    )
    steps = emit.op(before, "BitShift", emit.op(before, "Cast", total, to=_UINT64), shifts, direction="RIGHT")
    steps = emit.op(before, "Min", steps, emit.constant(f"qcompile.{high - low}", np.array(high - low, np.uint64)))
    if low:
        steps = emit.op(before, "Cast", steps, to=int(ir.DataType.INT32))
        steps = emit.op(before, "Add", steps, emit.constant(f"qcompile.{low}", np.array(low, np.int32)))
    return _cast(emit, before, steps, dtype, hint)


def _cast(emit: Emitter, before: ir.Node, value: ir.Value, dtype: ir.DataType, hint: str = "") -> ir.Value:
    return _typed(
        emit.op(before, "Cast", value, to=int(dtype), hint=hint or f"{name_of(value)}/{dtype.name.lower()}"), dtype
    )


def _typed(value: ir.Value, dtype: ir.DataType) -> ir.Value:
    value.type = ir.TensorType(dtype)
    return value
