"""INT4 weights times 8-bit activations with a scale for each token, on the 8-bit matrix instructions.

A byte of the weight holds the codes of two planes, as in ``weight_only`` but for 8-bit operands: the codes of
neighbouring bytes share a register as neighbouring operands do. For FP8 a code is sign and magnitude and becomes the
E4M3 subnormal ``code · 2^-9``; for INT8 it is two's complement and becomes ``code · 16``. The sums of a group are
exact integers (or FP8 sums of at most 128 products) and take the group's scale in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .matmul import store_share

__all__ = ["int4_by_8bit_kernel"]

_FP8_0 = tl.constexpr("and.b32 $0, $1, 0x87878787;")
_FP8_1 = tl.constexpr(
    "{ .reg .b32 t, u; shr.b32 t, $1, 3; and.b32 t, t, 0x07070707; shl.b32 u, $1, 1; "
    "lop3.b32 $0, u, 0x80808080, t, 0xEA; }"
)
_INT8_0 = tl.constexpr("{ .reg .b32 t; shl.b32 t, $1, 4; and.b32 $0, t, 0xF0F0F0F0; }")
_INT8_1 = tl.constexpr("and.b32 $0, $1, 0xF0F0F0F0;")


@triton.jit
def _operand(w, FLOAT: tl.constexpr, P: tl.constexpr, ASM: tl.constexpr):
    """Plane P of bytes ``w``, as E4M3 or INT8; without ASM as float32 with the same values."""
    if ASM:
        if FLOAT:
            out = tl.inline_asm_elementwise(
                _FP8_0 if P == 0 else _FP8_1, "=r,r", [w], dtype=tl.float8e4nv, is_pure=True, pack=4
            )
        else:
            out = tl.inline_asm_elementwise(
                _INT8_0 if P == 0 else _INT8_1, "=r,r", [w], dtype=tl.int8, is_pure=True, pack=4
            )
    else:
        byte = w.to(tl.int32) & 255
        if FLOAT:
            magnitude = (byte & 7 if P == 0 else (byte >> 3) & 7).to(tl.float32)
            sign = (byte >> 7 if P == 0 else byte >> 6) & 1
            out = magnitude * (1.0 - 2.0 * sign.to(tl.float32)) * 0.001953125
        else:
            nibble = byte & 15 if P == 0 else byte >> 4
            out = (((nibble ^ 8) - 8) * 16).to(tl.float32)
    return out


@triton.jit
def _activation(x, FLOAT: tl.constexpr, ASM: tl.constexpr):
    """Loaded codes as the other operand; without ASM, bytes to float32."""
    if ASM:
        out = x
    elif FLOAT:
        byte = x.to(tl.int32)
        bits = ((byte & 128) << 24) | ((byte & 127) << 20)
        out = bits.to(tl.float32, bitcast=True) * 1.329227995784916e36
    else:
        out = (((x.to(tl.int32) & 255) ^ 128) - 128).to(tl.float32)
    return out


@triton.jit
def _step(
    acc, w, x_ptr, m, M, kt, K, s_0, s_1, FLOAT: tl.constexpr, GROUP: tl.constexpr, PLANE: tl.constexpr,
    EVEN_K: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """``acc`` plus the product of a tile of K, whose sums are exact integers, or FP8 sums, group by group."""
    SUM: tl.constexpr = tl.float32 if FLOAT or not ASM else tl.int32
    c = tl.arange(0, PLANE)
    for g in tl.static_range(2 * PLANE // GROUP):
        part = tl.zeros(acc.shape, SUM)
        for p in tl.static_range(2):
            if p * PLANE // GROUP == g:
                k = kt * (2 * PLANE) + p * PLANE
                inside = (m < M)[None, :] if EVEN_K else (m < M)[None, :] & (k + c < K)[:, None]
                xt = _activation(tl.load(x_ptr + k, mask=inside, other=0.0), FLOAT, ASM)
                part = tl.dot(_operand(w, FLOAT, p, ASM), xt, part, out_dtype=SUM)
        acc += part.to(tl.float32) * (s_0 if g == 0 else s_1).to(tl.float32)[:, None]
    return acc


@triton.jit(do_not_specialize=["M"])
def int4_by_8bit_kernel(
    x, words, scales, row_scale, token_scale, bias, y, partial, counters, M, N, K, stride_x,
    FLOAT: tl.constexpr, GROUP: tl.constexpr, PLANE: tl.constexpr, BIAS: tl.constexpr, EVEN_K: tl.constexpr,
    ASM: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, HALVES: tl.constexpr, SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """``y [M, N]``; programs, shares of K and the order of tiles as in ``matmul_kernel``.

    With HALVES the tokens of a tile go one half after the other: room for the sums of a larger tile, which reads less.
    """
    GROUPS: tl.constexpr = 2 * PLANE // GROUP
    PART: tl.constexpr = BM // 2 if HALVES else BM
    pid, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    tiles_m = tl.cdiv(M, BM)
    band = pid // (8 * tiles_m)
    width = tl.minimum(tl.cdiv(N, BN) - band * 8, 8)
    n = (band * 8 + pid % (8 * tiles_m) % width) * BN + tl.arange(0, BN)
    m = pid % (8 * tiles_m) // width * BM + tl.arange(0, PART)
    ns = tl.minimum(n, N - 1)
    c = tl.arange(0, PLANE)
    tiles_k = tl.cdiv(K, 2 * PLANE)
    first, last = tiles_k * split // splits, tiles_k * (split + 1) // splits
    w_ptr = words + first.to(tl.int64) * N * PLANE + (ns[:, None] * PLANE + c[None, :])
    s_ptr = scales + first * N * GROUPS + ns * GROUPS
    x_ptr = x + (m[None, :].to(tl.int64) * stride_x + c[:, None])
    acc, other = tl.zeros([BN, PART], tl.float32), tl.zeros([BN, PART], tl.float32)
    s_0, s_1 = tl.load(s_ptr), tl.load(s_ptr + 1 % GROUPS)
    for kt in tl.range(first, last, num_stages=STAGES):
        w = tl.load(w_ptr)
        s_ptr += tl.where(kt + 1 < last, N * GROUPS, 0)
        n_0, n_1 = tl.load(s_ptr), tl.load(s_ptr + 1 % GROUPS)
        acc = _step(acc, w, x_ptr, m, M, kt, K, s_0, s_1, FLOAT, GROUP, PLANE, EVEN_K, ASM)
        if HALVES:
            x_other = x_ptr + PART * stride_x
            other = _step(other, w, x_other, m + PART, M, kt, K, s_0, s_1, FLOAT, GROUP, PLANE, EVEN_K, ASM)
        s_0, s_1 = n_0, n_1
        w_ptr += N * PLANE
    tile = pid * 2 if HALVES else pid
    store_share(
        acc, row_scale, token_scale, bias, y, partial, counters, tile, split, splits, n, m, M, N, True, BIAS, SPLIT
    )
    if HALVES:
        store_share(
            other, row_scale, token_scale, bias, y, partial, counters, tile + 1, split, splits, n, m + PART, M, N, True,
            BIAS, SPLIT,
        )  # fmt: skip
