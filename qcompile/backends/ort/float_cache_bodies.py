"""Codes of small floating-point numbers and their scales in standard operators, equal to ``formats.float_caches``."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.backends.ort.body import Body
from qcompile.backends.ort.rounding import clip, power_of_two, power_of_two_wide
from qcompile.formats import ELEMENTS, Element, ScaleType
from qcompile.formats.cache_format import LARGEST_SCALE
from qcompile.formats.float_caches import FloatCacheFormat

__all__ = ["float_codes", "float_scales"]

#: The smallest normal number of float32; what is below gets the smallest scale of E8M0 in any case.
_NORMAL = 2.0**-126


def float_codes(
    body: Body, x: ir.Value, second: ir.Value | None, fmt: FloatCacheFormat, features: int
) -> tuple[ir.Value, ir.Value | None]:
    """Codes from 0 on, as numbers, of ``[batch, heads, length, features]``, and the scales that tokens bring.

    Args:
        second: the static scale, where there is one: it is all of the scale, or its second level.
    """
    if not fmt.scale_numbers(features):
        assert second is not None
        return _signed(body, body.Div(x, second), body.Less(x, body.constant(0.0)), fmt.element), None
    groups = fmt.groups(features)
    parts = body.Reshape(x, body.vector(0, 0, 0, groups, features // groups))
    numbers = _stored(body, body.reduce("ReduceMax", body.Abs(parts)), second, fmt)
    scale = body.column(float_scales(body, numbers, second, fmt))
    usable = body.Greater(scale, body.constant(0.0))
    y = body.Div(parts, body.Where(usable, scale, body.constant(np.inf)))
    negative = body.And(body.Less(parts, body.constant(0.0)), usable)
    return body.Reshape(_signed(body, y, negative, fmt.element), body.vector(0, 0, 0, features)), numbers


def float_scales(body: Body, numbers: ir.Value, second: ir.Value | None, fmt: FloatCacheFormat) -> ir.Value:
    """Scales of tokens as numbers."""
    if fmt.stored_scales == np.float16:
        return body.to(numbers, ir.DataType.FLOAT)
    table = body.constant(fmt.scale_levels)
    own = body.Gather(table, body.to(numbers, ir.DataType.INT32), axis=0)
    return own if second is None else body.Mul(own, second)


def _stored(body: Body, amax: ir.Value, second: ir.Value | None, fmt: FloatCacheFormat) -> ir.Value:
    """Scales as they are stored."""
    if fmt.blocks.scale is ScaleType.E8M0:
        exponent = _exponent(body, power_of_two_wide(body, body.Max(amax, body.constant(_NORMAL))))
        code = body.Add(exponent, body.constant(127.0 - fmt.element.max_exponent))
        return body.to(clip(body, code, 0.0, 254.0), ir.DataType.UINT8)
    scale = body.Div(amax, body.constant(fmt.element.max))
    if fmt.blocks.scale is ScaleType.FP16:
        return body.to(clip(body, scale, -LARGEST_SCALE, LARGEST_SCALE), ir.DataType.FLOAT16)
    scale = scale if second is None else body.Div(scale, second)
    return body.to(_magnitude(body, scale, ELEMENTS["e4m3"]), ir.DataType.UINT8)


def _signed(body: Body, y: ir.Value, negative: ir.Value, element: Element) -> ir.Value:
    sign = body.Mul(body.to(negative, ir.DataType.FLOAT), body.constant(2.0 ** (element.bits - 1)))
    return body.Add(_magnitude(body, body.Abs(y), element), sign)


def _magnitude(body: Body, y: ir.Value, element: Element) -> ir.Value:
    """The code of the nearest level to what is not negative: quanta from zero, and those of binades in between."""
    y = clip(body, y, 0.0, element.max)
    smallest, steps = 1 - element.bias, 2.0**element.mantissa_bits
    binade = body.Max(power_of_two(body, y), body.constant(2.0**smallest))
    units = body.Round(body.Div(y, body.Mul(binade, body.constant(1 / steps))))
    between = body.Sub(_exponent(body, binade), body.constant(float(smallest)))
    return body.Add(units, body.Mul(between, body.constant(steps)))


def _exponent(body: Body, power: ir.Value) -> ir.Value:
    """The exponent of a power of two that is a normal number."""
    return body.Round(body.Mul(body.Log(power), body.constant(1 / np.log(2.0))))
