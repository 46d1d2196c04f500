"""The functions that quantize what is appended to a cache and decode a cache, equal to ``formats.cache_format``."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.backends.ort.body import Body
from qcompile.backends.ort.float_cache_bodies import float_codes, float_scales
from qcompile.backends.ort.unit_cache_bodies import unit_codes
from qcompile.formats.cache_format import LARGEST_SCALE, CacheFormat
from qcompile.formats.float_caches import FloatCacheFormat
from qcompile.formats.unit_caches import UnitCacheFormat

__all__ = ["dequantizing", "quantizing"]


def quantizing(fmt: CacheFormat, features: int, opset: int) -> ir.Function:
    """Keys or values ``[batch, heads, length, features]`` to codes; to scales as well where tokens bring them.

    Static scales are the last input, where there are any.
    """
    body = Body(opset)
    x = body.input("x")
    if isinstance(fmt, UnitCacheFormat):
        codes, factor = unit_codes(body, x, fmt, features)
        stored = body.column(_half(body, factor))
        return body.function(_name("Quantize", fmt, features), _in_bytes(body, codes, fmt, features), stored)
    if isinstance(fmt, FloatCacheFormat):
        second = body.input("s") if fmt.static else None
        codes, numbers = float_codes(body, x, second, fmt, features)
        made = [_in_bytes(body, codes, fmt, features)] + ([] if numbers is None else [numbers])
        return body.function(_name("Quantize", fmt, features), *made)
    if fmt.static:
        return body.function(
            _name("Quantize", fmt, features), _packed(body, body.Div(x, body.input("s")), fmt, features)
        )
    parts, high = body.Reshape(x, _parts(body, fmt, features)), body.constant(_high(fmt.highs(features)))
    if fmt.offset:
        start = _half(body, body.reduce("ReduceMin", parts))
        from_start = body.to(start, ir.DataType.FLOAT)
        span = body.Sub(body.reduce("ReduceMax", parts), from_start)
        stored = _half(body, body.Div(span, high))
        parts = body.Sub(parts, body.column(from_start))
        numbers = body.Concat(stored, start, axis=-1)
    else:
        numbers = stored = _half(body, body.Div(body.reduce("ReduceMax", body.Abs(parts)), high))
    scale = body.to(stored, ir.DataType.FLOAT)
    divisor = body.Where(body.Equal(scale, body.constant(0.0)), body.constant(1.0), scale)
    moved = body.Reshape(body.Div(parts, body.column(divisor)), body.vector(0, 0, 0, features))
    return body.function(_name("Quantize", fmt, features), _packed(body, moved, fmt, features), numbers)


def dequantizing(fmt: CacheFormat, features: int, opset: int) -> ir.Function:
    """Codes and scales to keys or values: scales of tokens first, then static ones, where there are any."""
    body = Body(opset)
    codes = body.input("codes")
    values = _unpacked(body, codes, fmt, features)
    name = _name("Dequantize", fmt, features)
    scales = body.input("scales") if fmt.scale_numbers(features) else None
    if scales is None:
        return body.function(name, body.Mul(values, body.input("s")))
    parts, numbers = body.Reshape(values, _parts(body, fmt, features)), body.to(scales, ir.DataType.FLOAT)
    if isinstance(fmt, FloatCacheFormat):
        numbers = float_scales(body, scales, body.input("s") if fmt.static else None, fmt)
    count, last = fmt.groups(features), body.vector(-1)
    own = body.Slice(numbers, body.vector(0), body.vector(count), last) if fmt.offset else numbers
    parts = body.Mul(parts, body.column(own))
    if fmt.offset:
        parts = body.Add(parts, body.column(body.Slice(numbers, body.vector(count), body.vector(2 * count), last)))
    return body.function(name, body.Reshape(parts, body.vector(0, 0, 0, features)))


def _high(highs: np.ndarray) -> np.ndarray:
    """The highest code, of each group where they differ."""
    return highs if np.ptp(highs) else highs[0]


def _name(what: str, fmt: CacheFormat, features: int) -> str:
    return f"{what}Cache_{fmt.word.replace('-', '_').replace('+', '_')}_{features}"


def _parts(body: Body, fmt: CacheFormat, features: int) -> ir.Value:
    """The shape in which groups have an axis of their own; 0 keeps an axis."""
    groups = fmt.groups(features)
    return body.vector(0, 0, 0, groups, features // groups)


def _half(body: Body, x: ir.Value) -> ir.Value:
    clipped = body.Clip(x, body.constant(-LARGEST_SCALE), body.constant(LARGEST_SCALE))
    return body.to(clipped, ir.DataType.FLOAT16)


def _packed(body: Body, y: ir.Value, fmt: CacheFormat, features: int) -> ir.Value:
    if fmt.halves is not None:
        return _packed_halves(body, y, fmt.halves, features)
    codes = body.Clip(body.Round(y), body.constant(float(fmt.low)), body.constant(float(fmt.high)))
    if fmt.per_byte == 1:
        return body.to(codes, ir.DataType.from_numpy(fmt.stored))
    return _in_bytes(body, body.Sub(codes, body.constant(float(fmt.low))), fmt, features)


def _in_bytes(body: Body, codes: ir.Value, fmt: CacheFormat, features: int) -> ir.Value:
    """Codes from 0 on, as numbers, in bytes."""
    apart = body.Reshape(codes, body.vector(0, 0, 0, features // fmt.per_byte, fmt.per_byte))
    places = body.constant(2.0 ** (fmt.bits * np.arange(fmt.per_byte)))
    return body.to(body.reduce("ReduceSum", body.Mul(apart, places)), ir.DataType.UINT8)


def _packed_halves(body: Body, y: ir.Value, bits: tuple[int, int], features: int) -> ir.Value:
    """A code of the first half and one of the second in each byte."""
    ends, last = [body.vector(place) for place in (0, features // 2, features)], body.vector(-1)
    first, second = (
        body.Clip(body.Round(body.Slice(y, start, end, last)), body.constant(0.0), body.constant(2.0**own - 1))
        for start, end, own in zip(ends, ends[1:], bits, strict=False)
    )
    return body.to(body.Add(first, body.Mul(second, body.constant(2.0 ** bits[0]))), ir.DataType.UINT8)


def _unpacked(body: Body, codes: ir.Value, fmt: CacheFormat, features: int) -> ir.Value:
    """Codes as numbers; of packed ones, a table has those of each byte."""
    if fmt.per_byte == 1 and fmt.integers:
        return body.to(codes, ir.DataType.FLOAT)
    if fmt.halves is not None:
        split = 2 ** fmt.halves[0]
        tables = [body.constant(part.astype(np.float64)) for part in (np.arange(256) % split, np.arange(256) // split)]
        byte = body.to(codes, ir.DataType.INT32)
        return body.Concat(*(body.Gather(table, byte, axis=0) for table in tables), axis=-1)
    places = np.arange(256)[:, None] >> (fmt.bits * np.arange(fmt.per_byte))
    table = body.constant(fmt.levels[places & (2**fmt.bits - 1)])
    found = body.Gather(table, body.to(codes, ir.DataType.INT32), axis=0)
    return body.Reshape(found, body.vector(0, 0, 0, features))
