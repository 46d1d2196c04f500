"""Softmax and norms over the last axis on a CPU: one pass of vectors over each row for every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from qcompile.backends.relax.kernels.lanes import Lanes, argument, kernel, select

__all__ = ["exp_of_negative", "layer_norm", "rms_norm", "softmax"]

_LOG2E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 0.693359375, -2.12194440054690583e-4
_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LEAST = -87.3  # below it the exponential is subnormal or zero


def exp_of_negative(lanes: Lanes, x: tirx.Expr) -> tirx.Expr:
    """``exp(x)`` for ``x <= 0`` or NaN, to two units in the last place; numbers below 2^-126 become zero.

    Cody and Waite's reduction with the minimax polynomial of Cephes (Moshier, expf).
    """
    power = T.Bind(tirx.nearbyint(tirx.max(x, lanes.number(_LEAST)) * lanes.number(_LOG2E)))
    rest = T.Bind((x - power * lanes.number(_LN2_HIGH)) - power * lanes.number(_LN2_LOW))
    value = lanes.number(_POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        value = value * rest + lanes.number(coefficient)
    value = value * (rest * rest) + rest + lanes.number(1.0)
    exponent = (lanes.cast(power, "int32") + lanes.number(127, "int32")) << lanes.number(23, "int32")
    scaled = T.Bind(value * lanes.floats(exponent))
    return T.Bind(select(x < lanes.number(_LEAST), lanes.number(0.0), scaled))


def _sweep(lanes: Lanes, size: Any, step: Callable[[Lanes, Any], None]) -> None:
    """``step(lanes, first)`` for every vector of a row, then for every element that is left."""
    whole = tirx.floordiv(size, lanes.width) if not isinstance(size, int) else size // lanes.width
    with T.serial(0, whole) as i:
        step(lanes, i * lanes.width)
    rest = size - whole * lanes.width
    if not isinstance(rest, int) or rest:
        with T.serial(0, rest) as i:
            step(replace(lanes, width=1), whole * lanes.width + i)


class _Accumulator:
    """A vector for whole vectors and a scalar for the elements that are left."""

    def __init__(self, lanes: Lanes, start: float, combine: Callable[..., tirx.Expr], reduce: str) -> None:
        self.lanes, self.combine, self.reduce = lanes, combine, reduce
        self.vector, self.scalar = lanes.local(1), T.alloc_buffer((1,), "float32", scope="local")
        lanes.store(self.vector, 0, lanes.number(start))
        T.buffer_store(self.scalar, tirx.const(start, "float32"), [0])

    def add(self, lanes: Lanes, value: tirx.Expr) -> None:
        """One more vector or element."""
        if lanes.width == 1:
            T.buffer_store(self.scalar, self.combine(self.scalar[0], value), [0])
        else:
            lanes.store(self.vector, 0, self.combine(lanes.load(self.vector, 0), value))

    def total(self) -> tirx.Expr:
        """Over all."""
        vector = self.lanes.load(self.vector, 0)
        start = [tirx.const(0.0, "float32")] if self.reduce == "fadd" else []
        across = tirx.call_llvm_pure_intrin("float32", f"llvm.vector.reduce.{self.reduce}", *start, vector)
        return T.Bind(self.combine(self.scalar[0], across))


def _sum(lanes: Lanes) -> _Accumulator:
    return _Accumulator(lanes, 0.0, lambda a, b: a + b, "fadd")


def softmax(lanes: Lanes, size: int | None, *, guarded: bool = False) -> tirx.PrimFunc:
    """``(x [m, n], y [m, n])``.

    Args:
        size: ``n`` where it is known.
        guarded: whether a row of nothing but -inf gives zeros instead of NaN.
    """

    def write() -> None:
        m = T.int64()
        n = T.int64() if size is None else size
        x, y = (argument(name, (m, n), "float32") for name in "xy")
        with lanes.jobs(m) as (row,):
            largest = _Accumulator(lanes, -float("inf"), tirx.max, "fmax")
            _sweep(lanes, n, lambda part, i: largest.add(part, x[row, part.at(i)]))
            top, total = largest.total(), _sum(lanes)
            if guarded:
                top = T.Bind(select(top == tirx.const(-float("inf"), "float32"), tirx.const(0.0, "float32"), top))

            def exponential(part: Lanes, i: Any) -> None:
                value = exp_of_negative(part, T.Bind(x[row, part.at(i)] - part.splat(top)))
                T.buffer_store(y, value, [row, part.at(i)])
                total.add(part, value)

            _sweep(lanes, n, exponential)
            whole = total.total()
            if guarded:
                whole = T.Bind(select(whole == 0, tirx.const(1.0, "float32"), whole))
            factor = T.Bind(tirx.const(1.0, "float32") / whole)

            def scale(part: Lanes, i: Any) -> None:
                T.buffer_store(y, y[row, part.at(i)] * part.splat(factor), [row, part.at(i)])

            _sweep(lanes, n, scale)

    return kernel("softmax", write)


def rms_norm(lanes: Lanes, size: int, epsilon: float) -> tirx.PrimFunc:
    """``(x [m, n], scale [n], y [m, n])``."""

    def write() -> None:
        m = T.int64()
        x, scale, y = (
            argument("x", (m, size), "float32"),
            argument("scale", (size,), "float32"),
            argument("y", (m, size), "float32"),
        )
        with lanes.jobs(m) as (row,):
            squares = _sum(lanes)

            def square(part: Lanes, i: Any) -> None:
                value = T.Bind(x[row, part.at(i)])
                squares.add(part, value * value)

            _sweep(lanes, size, square)
            factor = _inverse_root(squares.total(), size, epsilon)
            _sweep(lanes, size, lambda part, i: T.buffer_store(
                y, x[row, part.at(i)] * part.splat(factor) * scale[part.at(i)], [row, part.at(i)]))  # fmt: skip

    return kernel("rms_norm", write)


def layer_norm(lanes: Lanes, size: int, epsilon: float) -> tirx.PrimFunc:
    """``(x [m, n], scale [n], shift [n], y [m, n])``."""

    def write() -> None:
        m = T.int64()
        x = argument("x", (m, size), "float32")
        scale, shift = argument("scale", (size,), "float32"), argument("shift", (size,), "float32")
        y = argument("y", (m, size), "float32")
        with lanes.jobs(m) as (row,):
            total = _sum(lanes)
            _sweep(lanes, size, lambda part, i: total.add(part, x[row, part.at(i)]))
            mean = T.Bind(total.total() / tirx.const(float(size), "float32"))
            squares = _sum(lanes)

            def square(part: Lanes, i: Any) -> None:
                value = T.Bind(x[row, part.at(i)] - part.splat(mean))
                squares.add(part, value * value)

            _sweep(lanes, size, square)
            factor = _inverse_root(squares.total(), size, epsilon)

            def write_back(part: Lanes, i: Any) -> None:
                value = (x[row, part.at(i)] - part.splat(mean)) * part.splat(factor)
                T.buffer_store(y, value * scale[part.at(i)] + shift[part.at(i)], [row, part.at(i)])

            _sweep(lanes, size, write_back)

    return kernel("layer_norm", write)


def _inverse_root(squares: tirx.Expr, size: int, epsilon: float) -> tirx.Expr:
    mean = squares / tirx.const(float(size), "float32") + tirx.const(epsilon, "float32")
    return T.Bind(tirx.const(1.0, "float32") / tirx.sqrt(mean))
