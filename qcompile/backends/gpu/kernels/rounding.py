"""Block quantization inside kernels, to the bit what ``qcompile.formats`` defines.

Everything is float32. Adding a number so large that its last bit is the quantum rounds to the quantum, ties to even;
the bits of the sum then hold the code.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "effective_scale", "encode", "encode_pairs", "level_of", "magnitudes", "quotient", "row_scale", "stored_scale",
    "two_level",
]  # fmt: skip


def _e2m1_pairs() -> str:
    """PTX for the bytes of four pairs of E2M1 codes: low halves of $1 … $4, high halves of $5 … $8, as ``encode`` does.

    The number to add is 1.5 · 2^22 quanta and, in its last bits, twice what the exponent is above that of 1: bits 0 to
    21 of the sum are the code. Codes beyond 7, which need bit 3, become 7. Signs are in the highest bytes of values.
    """
    text = "{ .reg .b32 u, v, w, s, t; .reg .f32 a, f; "
    for word, values in (("w", (6, 2, 5, 1)), ("v", (8, 4, 7, 3))):
        for i, value in enumerate(values):
            text += f"abs.f32 a, ${value}; max.f32 f, a, 0f3F800000; mov.b32 u, f; shr.u32 u, u, 23; "
            text += "mad.lo.u32 u, u, 0x00800002, 0x0B3FFF02; mov.b32 f, u; add.f32 f, a, f; mov.b32 u, f; "
            text += f"mad.lo.u32 {word}, {word}, 16, u; " if i else f"mov.b32 {word}, u; "
    text += "prmt.b32 w, w, v, 0x5410; and.b32 s, w, 0x88888888; shr.u32 t, s, 3; sub.u32 s, s, t; "
    text += "lop3.b32 w, w, s, 0x77777777, 0xA8; "
    for mask, (i, j, k, m) in (("0x80808080", (5, 6, 7, 8)), ("0x08080808", (1, 2, 3, 4))):
        text += f"mov.b32 u, ${i}; mov.b32 v, ${j}; prmt.b32 s, u, v, 0x73; "
        text += f"mov.b32 u, ${k}; mov.b32 v, ${m}; prmt.b32 t, u, v, 0x73; prmt.b32 s, s, t, 0x5410; "
        text += "shr.u32 s, s, 4; " if mask == "0x08080808" else ""
        text += f"lop3.b32 w, s, {mask}, w, 0xEA; "
    return text + "mov.b32 $0, w; }"


_INVERSE = tl.constexpr(
    "{ .reg .f32 r, e; rcp.approx.ftz.f32 r, $1; neg.f32 e, r; fma.rn.f32 e, e, $1, 0f3F800000; "
    "fma.rn.f32 e, e, r, r; neg.f32 $0, e; }"
)
_E2M1_PAIRS = tl.constexpr(_e2m1_pairs())


@triton.jit
def _offset(a, MANTISSA: tl.constexpr, BIAS: tl.constexpr):
    """(exponent, bits of the number to add) for magnitudes ``a``."""
    exponent = tl.maximum(a.to(tl.int32, bitcast=True) & 0x7F800000, (128 - BIAS) << 23)
    return exponent, exponent + (((23 - MANTISSA) << 23) | 0x400000)


@triton.jit
def _float_code(a, MANTISSA: tl.constexpr, BIAS: tl.constexpr):
    """The code of magnitudes, and their levels."""
    exponent, offset = _offset(a, MANTISSA, BIAS)
    wide = offset.to(tl.float32, bitcast=True)
    total = a + wide
    units = total.to(tl.int32, bitcast=True) - offset
    return units + (exponent >> (23 - MANTISSA)) - ((128 - BIAS) << MANTISSA), total - wide


@triton.jit
def encode(y, KIND: tl.constexpr, BITS: tl.constexpr, MANTISSA: tl.constexpr, BIAS: tl.constexpr, MAX: tl.constexpr):
    """int32 codes of values over their scale. Integers: two's complement, -MAX … MAX; floats: sign and magnitude."""
    y = tl.minimum(tl.maximum(y, -MAX), MAX)
    if KIND == "integer":
        rounded = y + 12582912.0  # 1.5 · 2^23
        code = (rounded.to(tl.int32, bitcast=True) - 0x4B400000) & ((1 << BITS) - 1)
    else:
        code, level = _float_code(tl.abs(y), MANTISSA, BIAS)
        code = code | ((y.to(tl.int32, bitcast=True) >> (32 - BITS)) & (1 << (BITS - 1)))
    return code


@triton.jit
def encode_pairs(
    y, KIND: tl.constexpr, MANTISSA: tl.constexpr, BIAS: tl.constexpr, MAX: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Codes of four bits of values ``[..., n, 2]`` as bytes ``[..., n]``, the first of a pair in the low half."""
    low, high = tl.split(y)
    if ASM and KIND == "float" and MANTISSA == 1:
        out = tl.inline_asm_elementwise(
            _E2M1_PAIRS, "=r,f,f,f,f,f,f,f,f", [low, high], dtype=tl.uint8, is_pure=True, pack=4
        )
    else:
        first, second = encode(low, KIND, 4, MANTISSA, BIAS, MAX), encode(high, KIND, 4, MANTISSA, BIAS, MAX)
        out = (first | (second << 4)).to(tl.uint8)
    return out


@triton.jit
def level_of(y, KIND: tl.constexpr, MANTISSA: tl.constexpr, BIAS: tl.constexpr, MAX: tl.constexpr):
    """The level that ``encode`` rounds to."""
    y = tl.minimum(tl.maximum(y, -MAX), MAX)
    if KIND == "integer":
        level = y + 12582912.0 - 12582912.0
    else:
        code, level = _float_code(tl.abs(y), MANTISSA, BIAS)
        level = tl.where(y < 0, -level, level)
    return level


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def magnitudes(v, ASM: tl.constexpr):
    """The largest magnitude along axis 2, as bits: their order is that of the numbers, with infinity and NaN above."""
    if ASM:
        bits = tl.reduce(tl.abs(v), 2, _larger).to(tl.int32, bitcast=True)
    else:
        bits = tl.max(v.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 2)
    return bits


@triton.jit
def row_scale(amax, TARGET: tl.constexpr, SECOND: tl.constexpr):
    """The second-level scale of a row from its largest magnitude: ``amax / (TARGET · SECOND)``, 1 where that is 0."""
    scale = tl.div_rn(amax, tl.full(amax.shape, TARGET * SECOND, tl.float32))
    return tl.where(scale > 0, scale, 1.0)


@triton.jit
def _divided(negative, divisor, inverse, zero, CORRECTIONS: tl.constexpr):
    """``-negative / divisor`` from ``inverse``, the reciprocal of ``-divisor``, as long as nothing under- or overflows.

    Two of Markstein's corrections round it correctly; one tells the sides of a border of two or three bits, which was
    tried for every mantissa of a divisor. ``zero`` is -0, which changes no sum, or 0, which takes the sign of a zero.
    """
    out = tl.fma(negative, inverse, zero)
    for _ in tl.static_range(CORRECTIONS):
        out = tl.fma(tl.fma(divisor, out, negative), inverse, out)  # in this order a zero keeps its sign
    return out


@triton.jit
def _negative_inverse(divisor, ASM: tl.constexpr):
    """``-1 / divisor`` rounded correctly, for divisors whose reciprocals are normal (ASM: tried for every mantissa)."""
    if ASM:
        out = tl.inline_asm_elementwise(_INVERSE, "=f,f", [divisor], dtype=tl.float32, is_pure=True, pack=1)
    else:
        out = tl.div_rn(tl.full(divisor.shape, -1.0, tl.float32), divisor)
    return out


@triton.jit
def _into_range(divisor):
    """Powers of two that bring very small and very large divisors where their reciprocals are normal."""
    return tl.where(divisor < 1e-30, 1.8446744073709552e19, tl.where(divisor > 1e30, 5.421010862427522e-20, 1.0))


@triton.jit
def stored_scale(
    amax, second, TARGET: tl.constexpr, SCALE: tl.constexpr, SHIFT: tl.constexpr, ABOVE: tl.constexpr,
    HAS_SECOND: tl.constexpr, FUSED: tl.constexpr,
):  # fmt: skip
    """The scale of groups as it is stored: (value, code), where the code of a float32 scale is the value.

    ABOVE are the mantissa bits above which a power of two is doubled.
    """
    bits = amax.to(tl.int32, bitcast=True)
    broken = bits >= 0x7F800000  # NaN or infinity in the group
    if SCALE == "e8m0":
        exponent = (bits >> 23) - SHIFT + ((bits & 0x7FFFFF) > ABOVE).to(tl.int32)
        exponent = tl.minimum(tl.maximum(exponent, 0), 254)
        value = tl.where(exponent == 0, 5.877471754111438e-39, (exponent << 23).to(tl.float32, bitcast=True))
        code = tl.where(broken, 255, exponent)
    else:
        # Zeros, of which padding is full, take a division's slow way: one stands for them meanwhile.
        filled = tl.where(bits == 0, 1.0, amax)
        target = tl.full(amax.shape, TARGET, tl.float32)
        if SCALE == "e4m3" and HAS_SECOND and FUSED:
            if tl.min(tl.min(second, 1), 0) < 1e-30:  # else what underflows is far below the smallest E4M3 number
                value = tl.div_rn(filled, target)
            else:
                value = _divided(-filled, target, -1.0 / TARGET, 0.0, 2)
        else:
            value = tl.div_rn(filled, target)
        if HAS_SECOND:
            if SCALE == "e4m3" and FUSED:
                power = _into_range(second)
                divisor = second * power
                inverse = tl.div_rn(tl.full(second.shape, -1.0, tl.float32), divisor)
                value = _divided(value * -power, divisor, inverse, 0.0, 2)
            else:
                value = tl.div_rn(value, second)
        value = tl.where(bits == 0, 0.0, value)
        if SCALE == "e4m3":
            code, value = _float_code(tl.minimum(value, 448.0), 3, 7)
            code = tl.where(broken, 127, code)
        elif SCALE == "bf16":
            wide = value.to(tl.int32, bitcast=True)
            value = ((wide + 0x7FFF + ((wide >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
            code = value
        else:
            code = value
    value = tl.where(broken, float("nan"), value)
    if SCALE != "e8m0" and SCALE != "e4m3":
        code = value
    return value, code


@triton.jit
def effective_scale(value, second, HAS_SECOND: tl.constexpr):
    """The worth of one step of the codes."""
    return value * second if HAS_SECOND else value


@triton.jit
def quotient(
    v, factor, scale, second, POWER: tl.constexpr, BY_ROW: tl.constexpr, CORRECTIONS: tl.constexpr,
    FUSED: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """``v · factor / scale`` rounded once, and 0 where the scale is 0: ``v [rows, groups, group]``, ``scale [rows,
    groups]``; ``v · factor`` by itself is exact, or a rounding that the caller leaves to this.

    A division is dear, and dearer still by numbers as small as the scales of zeros. By powers of two (POWER) a
    product is the same; else, with FUSED multiply-add, one reciprocal for each group is enough. BY_ROW: scales are 0
    or E4M3 numbers times ``second [rows, 1]``.
    """
    if POWER:
        bits = scale.to(tl.int32, bitcast=True)
        inverse = tl.where(bits == 0x400000, 0x7F000000, 0x7F000000 - bits)  # of 2^-127, a subnormal
        inverse = tl.where(inverse == 0, 0x400000, inverse)
        out = v * (inverse.to(tl.float32, bitcast=True) * factor)[:, :, None]
    else:
        none = scale == 0
        usual = tl.where(none, 1.0, scale)
        if FUSED:
            power = _into_range(second if BY_ROW else tl.abs(usual))
            divisor = usual * power
            inverse = tl.where(none, 0.0, _negative_inverse(divisor, ASM))
            zero = tl.where(none, 0, -0x80000000).to(tl.float32, bitcast=True)  # no zero with a sign there
            divisor = tl.broadcast_to(divisor[:, :, None], v.shape)
            inverse = tl.broadcast_to(inverse[:, :, None], v.shape)
            zero = tl.broadcast_to(zero[:, :, None], v.shape)
            out = _divided(v * (-factor * power)[:, :, None], divisor, inverse, zero, CORRECTIONS)
        else:
            out = tl.div_rn(v * factor, tl.broadcast_to(usual[:, :, None], v.shape))
            out = tl.where(tl.broadcast_to(none[:, :, None], v.shape), 0.0, out)
    return out


@triton.jit
def _twice(v, high, low, zero):
    """``v (high + low)`` with one rounding but for one of ``v low``; ``zero`` as in ``_divided``."""
    return tl.fma(v, high, tl.fma(v, low, zero))


@triton.jit
def two_level(v, factor, amax, top, TARGET: tl.constexpr, SECOND: tl.constexpr, ASM: tl.constexpr):
    """``row_scale``, ``stored_scale`` and ``quotient`` for E4M3 scales under a row's, fast: (second, quotients, codes).

    Quotients by pairs of numbers that add up to the reciprocal: constants for the two targets, which round correctly
    (tried for every mantissa), and others within 2^-44 before their rounding, which no sum in front of them reaches.
    ``top [rows, 1]``. Groups whose steps are below 2^-135 round towards zero; a branch for them would cost all others.
    """
    power = tl.where(top < 1e-25, 1.2089258196146292e24, 1.0)  # 2^80: no reciprocal is too large
    back = tl.where(top < 1e-25, 8.271806125530277e-25, 1.0)
    none = tl.full(top.shape, -0.0, tl.float32)
    high = tl.full(top.shape, 1.0 / (TARGET * SECOND), tl.float32)
    second = _twice(top * power, high, tl.fma(-high, TARGET * SECOND, 1.0) * high, none) * back
    second = tl.where(second > 0, second, 1.0)
    divisor = second * power
    inverse = -_negative_inverse(divisor, ASM)
    rest = tl.broadcast_to(tl.fma(-inverse, divisor, 1.0) * inverse, amax.shape)

    none = tl.full(amax.shape, -0.0, tl.float32)
    high = tl.full(amax.shape, 1.0 / TARGET, tl.float32)
    value = _twice(amax * power, high, tl.fma(-high, TARGET, 1.0) * high, none)
    value = _twice(value, tl.broadcast_to(inverse, amax.shape), rest, none)
    value = tl.where(amax < float("inf"), value, float("nan"))
    code = value.to(tl.float8e4nv)

    scale = code.to(tl.float32) * divisor
    zero = tl.where(scale == 0, 0.0, none)  # no zero with a sign where the scale is 0
    inverse = tl.where(scale == 0, 0.0, -_negative_inverse(scale, ASM))
    high = factor * inverse
    low = tl.fma(-high, scale, factor) * inverse * power
    high = tl.minimum(high * power, 3e38)
    high, low = tl.broadcast_to(high[:, :, None], v.shape), tl.broadcast_to(low[:, :, None], v.shape)
    y = _twice(v, high, low, tl.broadcast_to(zero[:, :, None], v.shape))
    return second, y, code.to(tl.uint8, bitcast=True).to(tl.int32)
