"""Rows of activations: norm, gate or modulation, then quantization in blocks, in one pass over memory and the cache."""

from __future__ import annotations

import triton
import triton.language as tl

from .rounding import effective_scale, encode, encode_pairs, level_of, magnitudes, quotient, row_scale, stored_scale

__all__ = ["quantize_tile", "rows_kernel", "store_codes"]


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _value(
    x, other, third, row, other_row, at, mask, size, stride, other_stride, inverse, FORM: tl.constexpr,
    WEIGHT: tl.constexpr,
):  # fmt: skip
    """float32 values ``[rows, columns]`` of the operator FORM."""
    v = tl.load(x + row * stride + at, mask=mask, other=0.0).to(tl.float32)
    if FORM == "norm":
        v = v * inverse[:, None]
        if WEIGHT:
            v = v * tl.load(other + at, mask=at < size, other=0.0).to(tl.float32)
    elif FORM == "modulate":
        shift = tl.load(other + other_row * other_stride + at, mask=mask, other=0.0).to(tl.float32)
        v = v * (1.0 + tl.load(third + other_row * other_stride + at, mask=mask, other=0.0).to(tl.float32)) + shift
    elif FORM != "plain":
        b = tl.load(other + row * other_stride + at, mask=mask, other=0.0).to(tl.float32)
        if FORM == "silu":
            v = v * _sigmoid(v)
        elif FORM == "sigmoid":
            v = _sigmoid(v)
        elif FORM == "relu":
            v = tl.maximum(v, 0.0)
        elif FORM == "gelu-tanh":
            v = v * _sigmoid(1.5957691216057308 * (v + 0.044715 * v * v * v))
        v = v * b
    return v


@triton.jit
def quantize_tile(
    v, factor, second, amax, KIND: tl.constexpr, BITS: tl.constexpr, MANTISSA: tl.constexpr, BIAS: tl.constexpr,
    MAX: tl.constexpr, SCALE: tl.constexpr, SHIFT: tl.constexpr, ABOVE: tl.constexpr, TARGET: tl.constexpr,
    OTHER: tl.constexpr, HAS_SECOND: tl.constexpr, FUSED: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Values over their scales, still to be rounded, and the stored scales ``[rows, groups]``.

    The values are ``v [rows, groups, group]`` times ``factor``, ``amax [rows, groups]`` their largest magnitudes;
    ``second [rows, 1]``. With OTHER, a second target, each group takes the better one.
    """
    value, stored = stored_scale(amax, second, TARGET, SCALE, SHIFT, ABOVE, HAS_SECOND, FUSED)
    POWER: tl.constexpr = SCALE == "e8m0" and not HAS_SECOND
    BY_ROW: tl.constexpr = SCALE == "e4m3" and HAS_SECOND
    ENOUGH: tl.constexpr = 1 if KIND == "float" and MANTISSA == 1 else 2
    effective = effective_scale(value, second, HAS_SECOND)
    y = quotient(v, factor, effective, second, POWER, BY_ROW, ENOUGH, FUSED, ASM)
    if OTHER > 0:
        value_2, stored_2 = stored_scale(amax, second, OTHER, SCALE, SHIFT, ABOVE, HAS_SECOND, FUSED)
        effective_2 = effective_scale(value_2, second, HAS_SECOND)
        y_2 = quotient(v, factor, effective_2, second, POWER, BY_ROW, ENOUGH, FUSED, ASM)
        # Errors over the binade of the group, whose squares neither vanish nor overflow.
        binade = tl.maximum(0x7F000000 - (amax.to(tl.int32, bitcast=True) & 0x7F800000), 0x800000)
        unit = binade.to(tl.float32, bitcast=True)[:, :, None]
        off = (level_of(y, KIND, MANTISSA, BIAS, MAX) * effective[:, :, None] - v * factor) * unit
        off_2 = (level_of(y_2, KIND, MANTISSA, BIAS, MAX) * effective_2[:, :, None] - v * factor) * unit
        better = tl.sum(off_2 * off_2, 2) < tl.sum(off * off, 2)
        y = tl.where(better[:, :, None], y_2, y)
        stored = tl.where(better, stored_2, stored)
    return y, stored


@triton.jit(do_not_specialize=["count", "repeat"])
def rows_kernel(
    x, other, third, y, codes, scales, seconds, count, size, width, stride, other_stride, repeat, eps,
    FORM: tl.constexpr, WEIGHT: tl.constexpr, QUANTIZE: tl.constexpr, GROUP: tl.constexpr, KIND: tl.constexpr,
    BITS: tl.constexpr, MANTISSA: tl.constexpr, BIAS: tl.constexpr, MAX: tl.constexpr, SCALE: tl.constexpr,
    SHIFT: tl.constexpr, ABOVE: tl.constexpr, TARGET: tl.constexpr, OTHER: tl.constexpr, SECOND: tl.constexpr,
    CONSTANT: tl.constexpr, FUSED: tl.constexpr, ASM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``[count, size]`` through FORM, to ``y`` or, with QUANTIZE, to codes.

    GROUP 0 is one scale for a row. SECOND is the largest group scale of a second-level scale, 0 for none; CONSTANT a
    second level that does not depend on the data. ``width`` is ``size`` rounded up to groups.
    """
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(index, count - 1).to(tl.int64)[:, None]
    other_row = row // repeat
    inverse = tl.zeros([ROWS], tl.float32)
    if FORM == "norm":
        for start in range(0, size, BLOCK):
            at = start + tl.arange(0, BLOCK)[None, :]
            v = tl.load(x + row * stride + at, mask=at < size, other=0.0).to(tl.float32)
            inverse += tl.sum(v * v, 1)
        inverse = 1.0 / tl.sqrt_rn(inverse / size + eps)
    if not QUANTIZE:
        for start in range(0, size, BLOCK):
            at = start + tl.arange(0, BLOCK)[None, :]
            mask = (at < size) & (index < count)[:, None]
            v = _value(x, other, third, row, other_row, at, mask, size, stride, other_stride, inverse, FORM, WEIGHT)
            tl.store(y + row * size + at, v.to(y.dtype.element_ty), mask=mask)
    else:
        second = tl.full([ROWS, 1], CONSTANT if CONSTANT > 0 else 1.0, tl.float32)
        highest = tl.zeros([ROWS, 1], tl.float32)
        if GROUP == 0 or SECOND > 0:
            top = tl.zeros([ROWS], tl.int32)
            for start in range(0, size, BLOCK):
                at = start + tl.arange(0, BLOCK)[None, :]
                mask = at < size
                v = _value(x, other, third, row, other_row, at, mask, size, stride, other_stride, inverse, FORM, WEIGHT)
                if SECOND > 0:  # looks at finite values only; a broken group has a broken scale of its own
                    v = tl.where(tl.abs(v) < float("inf"), v, 0.0)
                top = tl.maximum(top, tl.max(magnitudes(v.reshape(ROWS, 1, BLOCK), ASM), 1))
            highest = top.to(tl.float32, bitcast=True)[:, None]
        if SECOND > 0:
            second = row_scale(highest, TARGET, SECOND)
        if SECOND > 0 or CONSTANT > 0:
            tl.store(seconds + index[:, None], second, mask=(index < count)[:, None])
        for start in range(0, width, BLOCK):
            at = start + tl.arange(0, BLOCK)[None, :]
            v = _value(
                x, other, third, row, other_row, at, at < size, size, stride, other_stride, inverse, FORM, WEIGHT
            )
            PER: tl.constexpr = GROUP if GROUP else BLOCK
            v = v.reshape(ROWS, BLOCK // PER, PER)
            amax = highest if GROUP == 0 else magnitudes(v, ASM).to(tl.float32, bitcast=True)
            v, stored = quantize_tile(v, 1.0, second, amax, KIND, BITS, MANTISSA, BIAS, MAX, SCALE, SHIFT, ABOVE,
                                      TARGET, OTHER, SECOND > 0 or CONSTANT > 0, FUSED, ASM)  # fmt: skip
            store_codes(v, codes, row, index < count, start, width, KIND, BITS, MANTISSA, BIAS, MAX, ASM, ROWS, BLOCK)
            if GROUP:
                g = start // PER + tl.arange(0, BLOCK // PER)[None, :]
                inside = (g < width // PER) & (index < count)[:, None]
                tl.store(scales + row * (width // PER) + g, stored.to(scales.dtype.element_ty), mask=inside)
            elif start == 0:
                tl.store(scales + row, stored.to(scales.dtype.element_ty), mask=(index < count)[:, None])


@triton.jit
def store_codes(
    y, codes, row, valid, start, width, KIND: tl.constexpr, BITS: tl.constexpr, MANTISSA: tl.constexpr,
    BIAS: tl.constexpr, MAX: tl.constexpr, ASM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rounds, and stores codes as bytes ``[count, width · BITS / 8]``, the first of two in the low half."""
    if BITS == 4:
        pairs = y.reshape(ROWS, y.shape[1], y.shape[2] // 2, 2)
        code = encode_pairs(pairs, KIND, MANTISSA, BIAS, MAX, ASM).reshape(ROWS, BLOCK // 2)
    else:
        code = encode(y, KIND, BITS, MANTISSA, BIAS, MAX).reshape(ROWS, BLOCK).to(tl.uint8)
    at = start * BITS // 8 + tl.arange(0, BLOCK * BITS // 8)[None, :]
    tl.store(codes + row * (width * BITS // 8) + at, code, mask=(at < width * BITS // 8) & valid[:, None])
