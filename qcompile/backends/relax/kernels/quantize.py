"""Quantizing an activation as it runs: every row on its own, read back as ``qcompile.formats.fake_quantize`` would."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from qcompile.backends.relax.kernels.lanes import Lanes, argument, const, float_of, kernel, select
from qcompile.backends.relax.kernels.rounding import (
    constant_second,
    finite,
    power_scale,
    round_element,
    row_target,
    store_scale,
)  # fmt: skip
from qcompile.formats import Format, ScaleRule, ScaleType

__all__ = ["quantize_rows", "supported"]

_NAN = float("nan")


def supported(fmt: Format) -> bool:
    """Whether the format's scales stay within a row."""
    return fmt.rows == 1 and len(fmt.targets) <= 2


def quantize_rows(lanes: Lanes, fmt: Format, size: int) -> tirx.PrimFunc:
    """``(x [m, size], y [m, size])``, float32.

    Args:
        size: a whole number of groups.
    """
    group = fmt.group or size
    lanes = lanes if group % lanes.width == 0 else replace(lanes, width=1)

    def write() -> None:
        m = T.int64()
        rows = _Rows(lanes, fmt, group, argument("x", (m, size), "float32"), argument("y", (m, size), "float32"))
        with lanes.jobs(m) as (row,):
            rows.write(row, size)

    return kernel(f"quantize_{fmt.name}_{size}".replace("-", "_"), write)


@dataclass
class _Rows:
    lanes: Lanes
    fmt: Format
    group: int
    x: tirx.Buffer
    y: tirx.Buffer

    def write(self, row: Any, size: int) -> None:
        second = self._second(row, size)
        with T.serial(0, size // self.group) as g:
            first = g * self.group
            scales, zero_point = self._scales(row, first, second)
            scale = scales[0] if len(scales) == 1 else self._better(row, first, scales)
            with T.serial(0, self.group // self.lanes.width) as i:
                at = self.lanes.at(first + i * self.lanes.width)
                T.buffer_store(self.y, self._rounded(self.x[row, at], scale, zero_point), [row, at])

    def _rounded(self, x: tirx.Expr, scale: tirx.Expr, zero_point: tirx.Expr | None) -> tirx.Expr:
        """Read back: ``fl(s · level)``."""
        divisor = T.Bind(select(scale == 0, const(float("inf"), "float32"), scale))
        y = T.Bind(x / self.lanes.splat(divisor))
        zero = None if zero_point is None else self.lanes.splat(zero_point)
        return round_element(self.lanes, y, self.fmt.element, zero) * self.lanes.splat(scale)

    # ---- statistics of a run of values ---------------------------------------------------------------------------

    def _reduce(self, row: Any, first: Any, count: int, op: str) -> tirx.Expr:
        """``amax`` as bits (whatever is not finite is larger than every number), or ``finite``, ``min``, ``max``."""
        lanes, integer = self.lanes, op in ("amax", "finite")
        dtype, start = ("int32", 0) if integer else ("float32", 0.0)
        best = lanes.local(1, dtype)
        lanes.store(best, 0, lanes.number(start, dtype))
        with T.serial(0, count // lanes.width) as i:
            value = self.x[row, lanes.at(first + i * lanes.width)]
            if integer:
                value = T.Bind(lanes.bits(value) & lanes.number(0x7FFFFFFF, "int32"))
            if op == "finite":
                value = select(value < lanes.number(0x7F800000, "int32"), value, lanes.number(0, "int32"))
            pick = tirx.min if op == "min" else tirx.max
            lanes.store(best, 0, pick(value, lanes.load(best, 0)))
        vector = lanes.load(best, 0)
        if lanes.width == 1:
            return T.Bind(vector)
        name = {"min": "fmin", "max": "fmax"}.get(op, "smax")
        return T.Bind(tirx.call_llvm_pure_intrin(dtype, f"llvm.vector.reduce.{name}", vector))

    def _second(self, row: Any, size: int) -> tirx.Expr | None:
        """The second-level scale of a row."""
        fixed = constant_second(self.fmt)
        if fixed is not None:
            return const(fixed, "float32")
        if self.fmt.tensor_scale is None:
            return None
        amax = float_of(self._reduce(row, 0, size, "finite"))
        scale = T.Bind(amax / const(row_target(self.fmt, self.fmt.tensor_scale), "float32"))
        return T.Bind(select(scale > 0, scale, const(1.0, "float32")))

    # ---- scales of a group ---------------------------------------------------------------------------------------

    def _scales(self, row: Any, first: Any, second: tirx.Expr | None) -> tuple[list[tirx.Expr], tirx.Expr | None]:
        """Candidates for the effective scale, and the zero point."""
        fmt, bits = self.fmt, self._reduce(row, first, self.group, "amax")
        if fmt.rule in (ScaleRule.MINMAX, ScaleRule.SIGNED_MAX):
            low, high = (self._reduce(row, first, self.group, op) for op in ("min", "max"))
            scale, zero_point = (_minmax if fmt.rule is ScaleRule.MINMAX else _signed_max)(low, high, fmt)
            return [_usable(scale, bits)], zero_point
        amax = T.Bind(float_of(bits))
        if fmt.scale is ScaleType.E8M0:
            stored = [power_scale(amax, fmt)]
        else:
            targets = fmt.targets or (fmt.element.max,)
            quotients = [amax / const(target, "float32") for target in targets]
            if second is not None:
                quotients = [T.Bind(T.Bind(quotient) / second) for quotient in quotients]
            stored = [store_scale(quotient, fmt.scale) for quotient in quotients]
        scales = [_usable(scale, bits) for scale in stored]
        return (scales if second is None else [T.Bind(scale * second) for scale in scales]), None

    def _better(self, row: Any, first: Any, scales: list[tirx.Expr]) -> tirx.Expr:
        """Of two scales the one with less squared error, the first on a tie.

        Errors are taken over the binade of the group, about: their squares neither vanish nor overflow.
        """
        exponent = self._reduce(row, first, self.group, "amax") & const(0x7F800000, "int32")
        unit = T.Bind(float_of(const(254 << 23, "int32") - tirx.min(exponent, const(253 << 23, "int32"))))
        errors = [self._error(row, first, scale, unit) for scale in scales]
        return T.Bind(select(errors[1] < errors[0], scales[1], scales[0]))

    def _error(self, row: Any, first: Any, scale: tirx.Expr, unit: tirx.Expr) -> tirx.Expr:
        lanes = self.lanes
        total = lanes.local(1)
        lanes.store(total, 0, lanes.number(0.0))
        with T.serial(0, self.group // lanes.width) as i:
            x = T.Bind(self.x[row, lanes.at(first + i * lanes.width)])
            error = T.Bind((self._rounded(x, scale, None) - x) * lanes.splat(unit))
            lanes.store(total, 0, lanes.load(total, 0) + error * error)
        vector = lanes.load(total, 0)
        if lanes.width == 1:
            return T.Bind(vector)
        start = const(0.0, "float32")
        return T.Bind(tirx.call_llvm_pure_intrin("float32", "llvm.vector.reduce.fadd", start, vector))


def _usable(scale: tirx.Expr, bits: tirx.Expr) -> tirx.Expr:
    """NaN for a group that holds one, or an infinity."""
    return T.Bind(select(finite(bits), scale, const(_NAN, "float32")))


def _minmax(low: tirx.Expr, high: tirx.Expr, fmt: Format) -> tuple[tirx.Expr, tirx.Expr]:
    steps = float(len(fmt.element.levels) - 1)
    scale = T.Bind(store_scale(T.Bind((high - low) / const(steps, "float32")), fmt.scale))
    divisor = select(scale == 0, const(float("inf"), "float32"), scale)
    zero_point = tirx.nearbyint((const(0.0, "float32") - low) / divisor)
    limited = tirx.max(tirx.min(zero_point, const(steps, "float32")), const(0.0, "float32"))
    return scale, T.Bind(limited)


def _signed_max(low: tirx.Expr, high: tirx.Expr, fmt: Format) -> tuple[tirx.Expr, None]:
    largest = T.Bind(select(high > const(0.0, "float32") - low, high, low))
    return store_scale(T.Bind(largest / const(fmt.element.levels[0], "float32")), fmt.scale), None
