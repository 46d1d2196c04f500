"""Block quantization inside kernels, to the bit what ``qcompile.formats`` defines.

Everything is float32. Adding a number so large that its last bit is the quantum rounds to the quantum, ties to even;
the bits of the sum then hold the code.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["effective_scale", "encode", "level_of", "quotient", "row_scale", "stored_scale"]


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
def row_scale(amax, TARGET: tl.constexpr, SECOND: tl.constexpr):
    """The second-level scale of a row from its largest magnitude: ``amax / (TARGET · SECOND)``, 1 where that is 0."""
    scale = tl.div_rn(amax, tl.full(amax.shape, TARGET * SECOND, tl.float32))
    return tl.where(scale > 0, scale, 1.0)


@triton.jit
def stored_scale(
    amax, second, TARGET: tl.constexpr, SCALE: tl.constexpr, SHIFT: tl.constexpr, ABOVE: tl.constexpr,
    HAS_SECOND: tl.constexpr,
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
        value = tl.div_rn(tl.where(bits == 0, 1.0, amax), tl.full(amax.shape, TARGET, tl.float32))
        if HAS_SECOND:
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
    """What one step of the codes is worth."""
    return value * second if HAS_SECOND else value


@triton.jit
def quotient(v, scale, POWER: tl.constexpr, FUSED: tl.constexpr):
    """``v / scale`` rounded once, and 0 where the scale is 0: ``v [rows, groups, group]``, ``scale [rows, groups]``.

    A division is dear, and dearer still by numbers as small as the scales of zeros. By powers of two (POWER) a
    product is the same; else, with FUSED multiply-add, the reciprocal of each group and two of Markstein's
    corrections give the correctly rounded quotient, as long as nothing under- or overflows.
    """
    if POWER:
        bits = scale.to(tl.int32, bitcast=True)
        inverse = tl.where(bits == 0x400000, 0x7F000000, 0x7F000000 - bits)  # of 2^-127, a subnormal
        inverse = tl.where(inverse == 0, 0x400000, inverse)
        out = v * inverse.to(tl.float32, bitcast=True)[:, :, None]
    else:
        divisor = tl.where(scale == 0, float("inf"), scale)
        if FUSED:
            inverse = tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), tl.where(scale == 0, 1.0, scale))
            y = tl.broadcast_to(tl.where(scale == 0, 0.0, inverse)[:, :, None], v.shape)
            negative = tl.broadcast_to(-scale[:, :, None], v.shape)
            out = v * y
            out = tl.fma(tl.fma(negative, out, v), y, out)
            out = tl.fma(tl.fma(negative, out, v), y, out)
            usual = tl.where(scale == 0, 1.0, tl.abs(scale))
            if (tl.min(tl.min(usual, 1), 0) < 1e-30) | (tl.max(tl.max(usual, 1), 0) > 1e30):
                out = tl.div_rn(v, tl.broadcast_to(divisor[:, :, None], v.shape))
        else:
            out = tl.div_rn(v, tl.broadcast_to(divisor[:, :, None], v.shape))
        out = tl.where(tl.broadcast_to(scale[:, :, None], v.shape) == 0, 0.0, out)  # no zero with a sign
    return out
