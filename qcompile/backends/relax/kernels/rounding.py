"""Rounding to a codebook and to the storage of a scale, equal to ``qcompile.formats`` to the bit."""

from __future__ import annotations

import math

import numpy as np
from tvm import tirx

from qcompile.backends.relax.kernels.lanes import Lanes, bits_of, const, float_of, select
from qcompile.formats import Element, Format, Kind, ScaleRule, ScaleType

__all__ = ["finite", "power_scale", "round_element", "store_scale"]

_EXPONENT, _SIGN, _REST = 0x7F800000, -(2**31), 0x7FFFFFFF
_SINGLE = Lanes(1)


def finite(bits: tirx.Expr) -> tirx.Expr:
    """Whether the bits of a magnitude are those of a finite number."""
    return bits < const(_EXPONENT, "int32")


def clamp(lanes: Lanes, y: tirx.Expr, low: float, high: float) -> tirx.Expr:
    """Saturate."""
    return tirx.max(tirx.min(y, lanes.number(high)), lanes.number(low))


def round_float(lanes: Lanes, y: tirx.Expr, mantissa: int, smallest: int) -> tirx.Expr:
    """To ``mantissa`` bits after the leading one, ties to even; below ``2^smallest`` the quantum stays."""
    exponent = lanes.bits(y) & lanes.number(_EXPONENT, "int32")
    exponent = tirx.max(exponent, lanes.number((127 + smallest) << 23, "int32"))
    offset = lanes.floats(exponent + lanes.number(((23 - mantissa) << 23) | 0x400000, "int32"))
    raised = lanes.floats(lanes.bits(y + offset))  # as bits for once: TVM would cancel the offset
    rounded = lanes.bits(raised - offset) & lanes.number(_REST, "int32")
    return lanes.floats(rounded | (lanes.bits(y) & lanes.number(_SIGN, "int32")))


def round_element(lanes: Lanes, y: tirx.Expr, element: Element, zero_point: tirx.Expr | None) -> tirx.Expr:
    """The nearest level of values that are already divided by their scale."""
    if element.kind is Kind.FLOAT:
        return round_float(lanes, clamp(lanes, y, -element.max, element.max), element.mantissa_bits, 1 - element.bias)
    if element.kind is Kind.TABLE:
        return _round_table(lanes, y, element)
    low, high = element.levels[0] / element.step, element.max / element.step
    y = tirx.nearbyint(y if element.step == 1 else y * lanes.number(1 / element.step))
    if zero_point is not None:
        return clamp(lanes, y + zero_point, low, high) - zero_point
    y = clamp(lanes, y, low, high)
    return y if element.step == 1 else y * lanes.number(element.step)


def _round_table(lanes: Lanes, y: tirx.Expr, element: Element) -> tirx.Expr:
    levels = np.array(element.levels, np.float32)
    value = lanes.number(float(levels[0]))
    for low, high in zip(levels, levels[1:], strict=False):
        middle = np.float32((float(low) + float(high)) / 2)
        if float(middle) > (float(low) + float(high)) / 2:
            middle = np.nextafter(middle, np.float32(-np.inf))
        value = select(y > lanes.number(float(middle)), lanes.number(float(high)), value)
    return value


# ---- scales, one at a time ---------------------------------------------------------------------------------------


def store_scale(scale: tirx.Expr, storage: ScaleType) -> tirx.Expr:
    """A scale as ``storage`` holds it."""
    if storage is ScaleType.NONE:
        return const(1.0, "float32")
    if storage is ScaleType.FP32:
        return scale
    if storage is ScaleType.FP16:
        return tirx.Cast("float32", tirx.Cast("float16", clamp(_SINGLE, scale, -65504.0, 65504.0)))
    if storage is ScaleType.BF16:
        bits = bits_of(scale)
        return float_of((bits + 0x7FFF + ((bits >> 16) & 1)) & const(-0x10000, "int32"))
    if storage is ScaleType.E4M3:
        return round_float(_SINGLE, clamp(_SINGLE, scale, -448.0, 448.0), 3, -6)
    return round_float(_SINGLE, clamp(_SINGLE, scale, -114688.0, 114688.0), 3, -14)  # UE5M3


def power_scale(amax: tirx.Expr, fmt: Format) -> tirx.Expr:
    """The E8M0 scale of a group, by the format's rule."""
    element, wide = fmt.element, tirx.Cast("float64", amax)
    exponent = {
        ScaleRule.FLOOR: lambda: _floor(wide) - element.max_exponent,
        ScaleRule.FOUR_THIRDS: lambda: _floor(wide) - element.max_exponent,
        ScaleRule.CEIL: lambda: _ceil(wide) - element.max_exponent,
        ScaleRule.RCEIL: lambda: _ceil(wide / const(element.max, "float64")),
        ScaleRule.NEAREST: lambda: _ceil(wide / const(element.max * 2**0.5, "float64")),
        ScaleRule.EVEN: lambda: _floor(tirx.Cast("float64", _carried(amax, element))) - element.max_exponent,
    }[fmt.rule]()
    limited = tirx.max(tirx.min(exponent, const(127, "int64")), const(-127, "int64"))
    return tirx.Cast("float32", tirx.reinterpret("float64", (limited + 1023) << const(52, "int64")))


def _carried(amax: tirx.Expr, element: Element) -> tirx.Expr:
    """Half a unit of the element's last mantissa bit more."""
    mantissa = element.mantissa_bits if element.kind is Kind.FLOAT else element.bits - 2
    return float_of(bits_of(amax) + const(1 << (22 - mantissa), "int32"))


def _floor(wide: tirx.Expr) -> tirx.Expr:
    return ((tirx.reinterpret("int64", wide) >> const(52, "int64")) & const(0x7FF, "int64")) - 1023


def _ceil(wide: tirx.Expr) -> tirx.Expr:
    return ((tirx.reinterpret("int64", wide) + const(2**52 - 1, "int64")) >> const(52, "int64")) - 1023


def row_target(fmt: Format, largest: float) -> float:
    """The divisor of a row's largest magnitude for the second-level scale that leads to group scales of ``largest``."""
    return (fmt.targets[0] if fmt.targets else fmt.element.max) * largest


def constant_second(fmt: Format) -> float | None:
    """The second-level scale that a rule fixes, whatever the data."""
    if fmt.rule is not ScaleRule.FOUR_THIRDS:
        return None
    return float(np.float32(math.ldexp(1.0, fmt.element.max_exponent + 1) / fmt.element.max))
