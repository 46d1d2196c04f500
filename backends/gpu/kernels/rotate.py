"""Transforms of the form ``left ⊗ right`` on whole rows, with the quantization that follows.

A row of ``A · B`` values is held as an ``A x B`` tile: ``right`` multiplies along its rows and ``left`` along its
columns, both on the matrix units. Hadamard factors are ±1, exact in bfloat16, and values go in as sums of bfloat16
numbers, so that the result is that of float32 (16 bits of it between the factors where the input has no more than 8).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rounding import row_scale
from .rows import magnitude_of, quantize_tile, store_codes

__all__ = ["rotate_kernel"]


@triton.jit
def _product(a, b, LEFT_EXACT: tl.constexpr, TERMS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """``a b`` where one of them (the left with LEFT_EXACT) is exact in DOT and the other takes TERMS such numbers."""
    if TERMS == 0:
        out = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=PRECISION)
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


@triton.jit(do_not_specialize=["count"])
def rotate_kernel(
    x, left, right, before, after, y, codes, scales, seconds, count, stride, factor,
    A: tl.constexpr, B: tl.constexpr, A_PAD: tl.constexpr, B_PAD: tl.constexpr, LEFT: tl.constexpr,
    RIGHT: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, TERMS_X: tl.constexpr, TERMS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, QUANTIZE: tl.constexpr, GROUP: tl.constexpr, KIND: tl.constexpr,
    BITS: tl.constexpr, MANTISSA: tl.constexpr, BIAS: tl.constexpr, MAX: tl.constexpr, SCALE: tl.constexpr,
    SHIFT: tl.constexpr, ABOVE: tl.constexpr, TARGET: tl.constexpr, OTHER: tl.constexpr, SECOND: tl.constexpr,
    CONSTANT: tl.constexpr, FUSED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Rows of ``x [count, A · B]``, one at a time; ``factor`` is what was taken out of the matrices."""
    a, b = tl.arange(0, A_PAD), tl.arange(0, B_PAD)
    at = a[:, None] * B + b[None, :]
    inside = (a < A)[:, None] & (b < B)[None, :]
    if RIGHT:  # transposed: [from, to]
        matrix = tl.load(right + b[None, :] * B + b[:, None], mask=(b < B)[:, None] & (b < B)[None, :], other=0.0)
    if LEFT:
        left_matrix = tl.load(left + a[:, None] * A + a[None, :], mask=(a < A)[:, None] & (a < A)[None, :], other=0.0)
    for row in tl.range(tl.program_id(0), count, tl.num_programs(0), num_stages=STAGES):
        rows = tl.full([1, 1], 0, tl.int64) + row
        v = tl.load(x + rows * stride + at, mask=inside, other=0.0)
        if BEFORE:
            wide = v.to(tl.float32) * tl.load(before + at, mask=inside, other=0.0)
            v = wide.to(v.dtype) if TERMS_X == 1 else wide
        if RIGHT:
            v = _product(v, matrix, False, TERMS_X, DOT, PRECISION)
        if LEFT:
            v = _product(left_matrix, v, True, TERMS if RIGHT else TERMS_X, DOT, PRECISION)
        v = v.to(tl.float32) * factor
        if AFTER:
            v = v * tl.load(after + at, mask=inside, other=0.0)
        if not QUANTIZE:
            tl.store(y + rows * (A * B) + at, v.to(y.dtype.element_ty), mask=inside)
        else:
            SIZE: tl.constexpr = A_PAD * B_PAD
            PER: tl.constexpr = GROUP if GROUP else SIZE
            v = v.reshape(1, SIZE // PER, PER)
            bits = tl.max(magnitude_of(v), 2)
            second = tl.full([1, 1], CONSTANT if CONSTANT > 0 else 1.0, tl.float32)
            if SECOND > 0:
                top = tl.max(tl.where(bits < 0x7F800000, bits, 0), 1)
                second = row_scale(top.to(tl.float32, bitcast=True)[:, None], TARGET, SECOND)
            if SECOND > 0 or CONSTANT > 0:
                tl.store(seconds + rows, second)
            amax = bits.to(tl.float32, bitcast=True)
            code, stored = quantize_tile(v, second, amax, KIND, BITS, MANTISSA, BIAS, MAX, SCALE, SHIFT, ABOVE,
                                         TARGET, OTHER, SECOND > 0 or CONSTANT > 0, FUSED)  # fmt: skip
            store_codes(code, codes, rows, tl.full([1], 1, tl.int1), 0, A * B, BITS, 1, SIZE)
            g = tl.arange(0, SIZE // PER)[None, :]
            groups = (A * B) // PER if GROUP else 1
            tl.store(scales + rows * groups + g, stored.to(scales.dtype.element_ty), mask=g < groups)
