"""Transforms of the form ``left ⊗ right`` on whole rows, with the quantization that follows.

A row of ``A · B`` values is held as an ``A x B`` tile: first ``left`` multiplies along its columns, then ``right``
along its rows, both on the matrix units, so that what goes on between them stays in registers. Hadamard factors are ±1,
exact in bfloat16, and values go in as sums of bfloat16 numbers, so that the result is that of float32 (16 bits of it
between the factors where the input has no more than 8). LEVELS of the Sylvester part of ``right`` are sums and
differences.

The matrix units leave every eighth pair of columns to a thread. The columns of ``right`` are ordered such that these
are neighbours in the row: groups of values that share a scale, and whole bytes of codes, in one thread.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rounding import magnitudes, row_scale, two_level
from .rows import quantize_tile, store_codes

__all__ = ["rotate_kernel"]

_SIGNS = tl.constexpr("{ .reg .b32 t; shl.b32 t, $2, $4; lop3.b32 $0, $1, t, 0x80008000, 0x78; }")  # x ^ (t & mask)
# Rounded, and the rounded rest.
_HALVES = tl.constexpr(
    "{ .reg .b32 t; .reg .f32 a, b; cvt.rn.bf16x2.f32 t, $3, $2; mov.b32 $0, t; mov.b32 b, t; "
    "shl.b32 t, t, 16; mov.b32 a, t; mov.b32 t, b; and.b32 t, t, 0xFFFF0000; mov.b32 b, t; "
    "sub.f32 a, $2, a; sub.f32 b, $3, b; cvt.rn.bf16x2.f32 $1, b, a; }"
)


@triton.jit
def _product(
    a, b, LEFT_EXACT: tl.constexpr, TERMS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """``a b`` where one of them (the left with LEFT_EXACT) is exact in DOT and the other takes TERMS such numbers."""
    if TERMS == 0:
        out = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=PRECISION)
    elif TERMS == 2 and ASM and not LEFT_EXACT and a.dtype == tl.float32:
        high, low = tl.inline_asm_elementwise(
            _HALVES, "=&r,=r,f,f", [a], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2
        )
        both = tl.join(high, low).permute(0, 2, 1).reshape(a.shape[0], 2 * a.shape[1])
        out = tl.dot(both, b.to(DOT))  # which stands twice in b
    else:
        rest = b if LEFT_EXACT else a
        out = tl.zeros([a.shape[0], b.shape[1]], tl.float32)
        for i in tl.static_range(TERMS):
            part = rest.to(DOT)
            if LEFT_EXACT:
                out = tl.dot(a.to(DOT), part, out, input_precision="ieee")
            else:
                out = tl.dot(part, b.to(DOT), out, input_precision="ieee")
            if i + 1 < TERMS:
                rest = rest.to(tl.float32) - part.to(tl.float32)
    return out


@triton.jit
def _signed(v, words, A: tl.constexpr, B: tl.constexpr, ASM: tl.constexpr):
    """``v [A, B]`` with signs from ``words [A, B / 32]``: columns 2j and 2j + 1 have bits 15 - j and 31 - j."""
    wide = tl.broadcast_to(words[:, :, None], (A, B // 32, 4)) << (tl.arange(0, 4) * 4)[None, None, :]
    wide = tl.broadcast_to(wide.reshape(A, B // 8)[:, :, None], (A, B // 8, 8)).reshape(A, B)  # of eight columns
    c = tl.arange(0, B)[None, :] % 8
    if ASM and v.dtype.primitive_bitwidth == 16:
        bits = v.to(tl.int16, bitcast=True)
        bits = tl.inline_asm_elementwise(
            _SIGNS, "=r,r,r,r,r,r", [bits, wide, tl.broadcast_to(c // 2, (A, B))], dtype=tl.int16, is_pure=True, pack=2
        )
        out = bits.to(v.dtype, bitcast=True)
    else:
        exact = v.to(tl.float32)  # the interpreter cannot negate bfloat16
        out = tl.where((wide >> (15 - c // 2 + c % 2 * 16)) & 1 == 1, -exact, exact).to(v.dtype)
    return out


@triton.jit
def _ordered(v, A: tl.constexpr, B: tl.constexpr):
    """Columns from the order of ``_place`` to that of the row."""
    return v.reshape(A, B // 8, 4, 2).permute(0, 2, 1, 3).reshape(A, B)


@triton.jit
def _place(B: tl.constexpr):
    """Where in the row the columns of a product stand."""
    c = tl.arange(0, B)
    return c % 8 // 2 * (B // 4) + c // 8 * 2 + c % 2


@triton.jit
def _along_rows(
    v, matrix, A: tl.constexpr, B: tl.constexpr, LEVELS: tl.constexpr, TERMS: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """``v [A, B]`` times ``right``: bits 3 … of the column by sums and differences, the others by ``matrix``."""
    if LEVELS == 0:
        out = _ordered(_product(v, matrix, False, TERMS, DOT, PRECISION, ASM), A, B)
    else:
        first, second = tl.split(v.reshape(A, B // 16, 2, 8).permute(0, 1, 3, 2))
        if LEVELS == 1:  # one product for both
            both = tl.join(first + second, first - second).permute(3, 0, 1, 2).reshape(2 * A, B // 2)
            both = _along_rows(both, matrix, 2 * A, B // 2, 0, TERMS, DOT, PRECISION, ASM)
            out = both.reshape(2, A, B // 16, 8).permute(1, 2, 0, 3).reshape(A, B)
        else:
            total, difference = (first + second).reshape(A, B // 2), (first - second).reshape(A, B // 2)
            total = _along_rows(total, matrix, A, B // 2, LEVELS - 1, TERMS, DOT, PRECISION, ASM)
            difference = _along_rows(difference, matrix, A, B // 2, LEVELS - 1, TERMS, DOT, PRECISION, ASM)
            both = tl.join(total.reshape(A, B // 16, 8), difference.reshape(A, B // 16, 8))
            out = both.permute(0, 1, 3, 2).reshape(A, B)
    return out


@triton.jit
def _quantized(
    v, factor, amax, KIND: tl.constexpr, BITS: tl.constexpr, MANTISSA: tl.constexpr, BIAS: tl.constexpr,
    MAX: tl.constexpr, SCALE: tl.constexpr, SHIFT: tl.constexpr, ABOVE: tl.constexpr, TARGET: tl.constexpr,
    OTHER: tl.constexpr, SECOND: tl.constexpr, CONSTANT: tl.constexpr, FUSED: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """The second-level scale of a row, then as ``quantize_tile``."""
    second = tl.full([1, 1], CONSTANT if CONSTANT > 0 else 1.0, tl.float32)
    if SECOND > 0:
        top = tl.max(tl.where(amax < float("inf"), amax, 0.0), 1)[:, None]
    if SECOND > 0 and FUSED and ASM and SCALE == "e4m3" and KIND == "float" and MANTISSA == 1 and OTHER == 0:
        second, y, stored = two_level(v, factor, amax, top, TARGET, SECOND, ASM)
    else:
        if SECOND > 0:
            second = row_scale(top, TARGET, SECOND)
        y, stored = quantize_tile(v, factor, second, amax, KIND, BITS, MANTISSA, BIAS, MAX, SCALE, SHIFT, ABOVE,
                                  TARGET, OTHER, SECOND > 0 or CONSTANT > 0, FUSED, ASM)  # fmt: skip
    return second, y, stored


@triton.jit(do_not_specialize=["count"])
def rotate_kernel(
    x, left, right, before, signs, after, y, codes, scales, seconds, count, stride, factor,
    A: tl.constexpr, B: tl.constexpr, A_PAD: tl.constexpr, B_PAD: tl.constexpr, LEFT: tl.constexpr,
    RIGHT: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, LEVELS: tl.constexpr, TERMS_X: tl.constexpr,
    TERMS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, QUANTIZE: tl.constexpr, GROUP: tl.constexpr,
    KIND: tl.constexpr, BITS: tl.constexpr, MANTISSA: tl.constexpr, BIAS: tl.constexpr, MAX: tl.constexpr,
    SCALE: tl.constexpr, SHIFT: tl.constexpr, ABOVE: tl.constexpr, TARGET: tl.constexpr, OTHER: tl.constexpr,
    SECOND: tl.constexpr, CONSTANT: tl.constexpr, FUSED: tl.constexpr, ASM: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Rows of ``x [count, A · B]``, one at a time; ``factor`` is what was taken out of the matrices.

    BEFORE is "" or "signs" (bits, see ``_signed``) or "values" (float32).
    """
    a, b = tl.arange(0, A_PAD), tl.arange(0, B_PAD)
    at = a[:, None] * B + b[None, :]
    inside = (a < A)[:, None] & (b < B)[None, :]
    if RIGHT:  # transposed: [from, to]
        WIDTH: tl.constexpr = B_PAD >> LEVELS
        TWICE: tl.constexpr = 2 if ASM and LEFT and TERMS == 2 else 1
        c, to = tl.arange(0, TWICE * WIDTH) % WIDTH, _place(WIDTH)
        if LEVELS > 0:
            c, to = c // 8 * (8 << LEVELS) + c % 8, to // 8 * (8 << LEVELS) + to % 8
        matrix = tl.load(right + to[None, :] * B + c[:, None], mask=(c < B)[:, None] & (to < B)[None, :], other=0.0)
    if LEFT:
        r = a // 16 * 8 + a // 8 % 2 * (A_PAD // 2) + a % 8  # so that threads hold what they store
        left_matrix = tl.load(left + r[:, None] * A + a[None, :], mask=(r < A)[:, None] & (a < A)[None, :], other=0.0)
    for row in tl.range(tl.program_id(0), count, tl.num_programs(0), num_stages=STAGES):
        line = tl.full([], 0, tl.int64) + row
        v = tl.load(x + line * stride + at, mask=inside, other=0.0)
        if BEFORE == "values":
            v = v.to(tl.float32) * tl.load(before + at, mask=inside, other=0.0)
        elif BEFORE == "signs":
            w = a[:, None] * (B // 32) + tl.arange(0, B // 32)[None, :]
            v = _signed(v, tl.load(signs + w, mask=(a < A)[:, None], other=0), A_PAD, B, ASM)
        if LEFT:
            v = _product(left_matrix, v, True, TERMS_X, DOT, PRECISION, ASM)
        if RIGHT:
            v = _along_rows(v, matrix, A_PAD, B_PAD, LEVELS, TERMS if LEFT else TERMS_X, DOT, PRECISION, ASM)
        v = v.to(tl.float32)
        if LEFT:
            v = v.reshape(A_PAD // 16, 2, 8, B_PAD).permute(1, 0, 2, 3).reshape(A_PAD, B_PAD)
        if AFTER:
            v = v * tl.load(after + at, mask=inside, other=0.0)
        if not QUANTIZE:
            tl.store(y + line * (A * B) + at, (v * factor).to(y.dtype.element_ty), mask=inside)
        else:
            SIZE: tl.constexpr = A_PAD * B_PAD
            PER: tl.constexpr = GROUP if GROUP else SIZE
            v = v.reshape(1, SIZE // PER, PER)
            amax = magnitudes(v, ASM).to(tl.float32, bitcast=True) * factor
            second, v, stored = _quantized(
                v, factor, amax, KIND, BITS, MANTISSA, BIAS, MAX, SCALE, SHIFT, ABOVE, TARGET, OTHER, SECOND, CONSTANT,
                FUSED, ASM,
            )  # fmt: skip
            if SECOND > 0 or CONSTANT > 0:
                tl.store(seconds + line + tl.zeros([1, 1], tl.int32), second)
            store_codes(v, codes, line, tl.full([1], 1, tl.int1), 0, A * B, KIND, BITS, MANTISSA, BIAS, MAX, ASM, 1,
                        SIZE)  # fmt: skip
            g = tl.arange(0, SIZE // PER)[None, :]
            groups = (A * B) // PER if GROUP else 1
            tl.store(scales + line * groups + g, stored.to(scales.dtype.element_ty), mask=g < groups)
