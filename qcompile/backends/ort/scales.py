"""Group scales of an activation in standard operators, by every rule of ``qcompile.formats``, to the bit.

Values come as ``[..., groups, group]``, scales go as ``[..., groups]``: with a last axis of size 1 instead, onnxruntime
takes an operation with a scalar one element at a time. A second-level scale belongs to one row, so that no token
depends on another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from qcompile.backends.ort.body import Body
from qcompile.backends.ort.rounding import clip, power_of_two_wide, round_float
from qcompile.formats import Format, Kind, ScaleRule, ScaleType

__all__ = ["divisor", "effective_scales", "scales_in_range", "supported"]

_TINY = float(np.finfo(np.float32).smallest_subnormal)


def supported(fmt: Format) -> bool:
    """Whether scales of the format can be computed, each within one row."""
    stored = fmt.scale in _STORE or (fmt.scale is ScaleType.E8M0 and fmt.rule in _BORDERS)
    return fmt.rows == 1 and fmt.rule in _RULES and stored and len(fmt.targets) <= 2


def effective_scales(body: Body, x: ir.Value, fmt: Format) -> Sequence[tuple[ir.Value, ir.Value | None]]:
    """The candidates for the effective scale of each group, with its zero point: one, or one per target."""
    return _RULES[fmt.rule](body, x, fmt)


def scales_in_range(body: Body, x: ir.Value, fmt: Format, second: ir.Value) -> Sequence[tuple[ir.Value, None]]:
    """The same where the second-level scale is given."""
    amax = body.reduce("ReduceMax", body.Abs(x))
    return [(scale, None) for scale in _under(body, amax, fmt, second)]


def divisor(body: Body, scale: ir.Value, fmt: Format) -> ir.Value:
    """A divisor that is never zero. For zero the quotient may be anything; it is multiplied by a scale of zero."""
    if fmt.rule is ScaleRule.SIGNED_MAX:  # scales of either sign
        return body.Where(body.Equal(scale, body.constant(0.0)), body.constant(np.inf), scale)
    return body.Max(scale, body.constant(_TINY))


def _absmax(body: Body, x: ir.Value, fmt: Format) -> Sequence[tuple[ir.Value, ir.Value | None]]:
    amax = body.reduce("ReduceMax", body.Abs(x))
    second = None if fmt.tensor_scale is None else _row_scale(body, amax, fmt, fmt.tensor_scale)
    return [(scale, None) for scale in _under(body, amax, fmt, second)]


def _under(body: Body, amax: ir.Value, fmt: Format, second: ir.Value | None) -> Iterator[ir.Value]:
    """The effective scale for each target, below a second level if there is one."""
    for target in fmt.targets or (fmt.element.max,):
        scale = body.Div(amax, body.constant(target))
        if second is None:
            yield _store(body, scale, fmt.scale)
        else:
            yield body.Mul(_store(body, body.Div(scale, second), fmt.scale), second)


def _row_scale(body: Body, amax: ir.Value, fmt: Format, largest: float) -> ir.Value:
    """The second-level scale of each row, ``[..., 1]``, where the largest scale of a group is to be ``largest``."""
    target = fmt.targets[0] if fmt.targets else fmt.element.max
    scale = body.Div(body.reduce("ReduceMax", amax, keep=True), body.constant(target * largest))
    return body.Where(body.Equal(scale, body.constant(0.0)), body.constant(1.0), scale)


def _power(body: Body, x: ir.Value, fmt: Format) -> Sequence[tuple[ir.Value, ir.Value | None]]:
    """All E8M0 rules are one: ``2^(⌊log2 amax⌋ - shift)``, doubled where amax is above a multiple of its binade."""
    amax = body.reduce("ReduceMax", body.Abs(x))
    binade = power_of_two_wide(body, amax)
    shift, threshold = _BORDERS[fmt.rule](fmt)
    scale = body.Mul(binade, body.constant(2.0**-shift))
    if threshold < 2:
        above = body.Greater(amax, body.Mul(binade, body.constant(threshold)))
        scale = body.Mul(scale, body.Add(body.to(above, ir.DataType.FLOAT), body.constant(1.0)))
    scale = clip(body, scale, 2.0**-127, 2.0**127)
    if fmt.rule is ScaleRule.FOUR_THIRDS:
        scale = body.Mul(scale, body.constant(2.0 ** (fmt.element.max_exponent + 1) / fmt.element.max))
    return [(scale, None)]


def _border(largest: float) -> tuple[int, float]:
    """The rule that rounds ``log2(amax / largest)`` up, as (shift, threshold rounded down to float32)."""
    shift = math.frexp(largest)[1] - 1
    threshold = math.floor(largest / 2.0**shift * 2**23) / 2**23
    return shift, threshold


def _even(fmt: Format) -> tuple[int, float]:
    """From ``2 - 2^-(m + 1)`` times the binade on, half a unit of the mantissa carries over."""
    mantissa = fmt.element.mantissa_bits if fmt.element.kind is Kind.FLOAT else fmt.element.bits - 2
    return fmt.element.max_exponent, 2 - 2.0 ** -(mantissa + 1) - 2.0**-23


_BORDERS: dict[ScaleRule, Callable[[Format], tuple[int, float]]] = {
    ScaleRule.FLOOR: lambda fmt: (fmt.element.max_exponent, 2.0),
    ScaleRule.FOUR_THIRDS: lambda fmt: (fmt.element.max_exponent, 2.0),
    ScaleRule.CEIL: lambda fmt: (fmt.element.max_exponent, 1.0),
    ScaleRule.RCEIL: lambda fmt: _border(fmt.element.max),
    ScaleRule.NEAREST: lambda fmt: _border(fmt.element.max * 2**0.5),
    ScaleRule.EVEN: _even,
}


def _signed_max(body: Body, x: ir.Value, fmt: Format) -> Sequence[tuple[ir.Value, ir.Value | None]]:
    low, high = body.reduce("ReduceMin", x), body.reduce("ReduceMax", x)
    largest = body.Where(body.Greater(high, body.Neg(low)), high, low)
    return [(_store(body, body.Div(largest, body.constant(fmt.element.levels[0])), fmt.scale), None)]


def _minmax(body: Body, x: ir.Value, fmt: Format) -> Sequence[tuple[ir.Value, ir.Value | None]]:
    zero, steps = body.constant(0.0), float(len(fmt.element.levels) - 1)
    low = body.Min(body.reduce("ReduceMin", x), zero)
    high = body.Max(body.reduce("ReduceMax", x), zero)
    scale = _store(body, body.Div(body.Sub(high, low), body.constant(steps)), fmt.scale)
    empty = body.Equal(scale, zero)
    quotient = body.Div(body.Neg(low), body.Where(empty, body.constant(np.inf), scale))
    return [(scale, clip(body, body.Round(quotient), 0.0, steps))]


_RULES: dict[ScaleRule, Callable[[Body, ir.Value, Format], Sequence[tuple[ir.Value, ir.Value | None]]]] = {
    ScaleRule.ABSMAX: _absmax,
    ScaleRule.SIGNED_MAX: _signed_max,
    ScaleRule.MINMAX: _minmax,
    **dict.fromkeys(_BORDERS, _power),
}


# ---- storage -----------------------------------------------------------------------------------------------------


def _store(body: Body, scale: ir.Value, storage: ScaleType) -> ir.Value:
    return _STORE[storage](body, scale)


def _through(dtype: ir.DataType, largest: float) -> Callable[[Body, ir.Value], ir.Value]:
    def store(body: Body, scale: ir.Value) -> ir.Value:
        return body.to(body.to(clip(body, scale, -largest, largest), dtype), ir.DataType.FLOAT)

    return store


_STORE: dict[ScaleType, Callable[[Body, ir.Value], ir.Value]] = {
    ScaleType.NONE: lambda body, scale: body.Add(body.Mul(scale, body.constant(0.0)), body.constant(1.0)),
    ScaleType.FP32: lambda body, scale: scale,
    ScaleType.FP16: _through(ir.DataType.FLOAT16, 65504.0),
    ScaleType.BF16: lambda body, scale: round_float(body, scale, 7, 2.0**-126),
    ScaleType.E4M3: lambda body, scale: round_float(body, clip(body, scale, 0.0, 448.0), 3, 2.0**-6),
    ScaleType.UE5M3: lambda body, scale: round_float(body, clip(body, scale, 0.0, 114688.0), 3, 2.0**-14),
}
