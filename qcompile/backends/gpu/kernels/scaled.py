"""Block-scaled 4-bit weights times block-scaled 4-bit activations on the matrix instructions that take both scales.

NVFP4 and MXFP4 on Blackwell, MXFP4 on CDNA 4. Codes are packed in pairs along K, as activations are.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["scaled_kernel"]


@triton.jit(do_not_specialize=["M"])
def scaled_kernel(
    x, x_scales, w, w_scales, row_scale, token_scale, bias, y, M, N, K,
    GROUP: tl.constexpr, TOKEN: tl.constexpr, BIAS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """``y [M, N]`` of ``x [M, K/2]`` and ``w [N, K/2]`` with scales ``[rows, K / GROUP]``; K in whole groups."""
    pid = tl.program_id(0)
    tiles_n = tl.cdiv(N, BN)
    m, n = pid // tiles_n * BM + tl.arange(0, BM), pid % tiles_n * BN + tl.arange(0, BN)
    ms, ns = tl.minimum(m, M - 1), tl.minimum(n, N - 1)
    k, g = tl.arange(0, BK // 2), tl.arange(0, BK // GROUP)
    x_ptr = x + ms[:, None].to(tl.int64) * (K // 2) + k[None, :]
    w_ptr = w + ns[None, :].to(tl.int64) * (K // 2) + k[:, None]
    xs_ptr = x_scales + ms[:, None].to(tl.int64) * (K // GROUP) + g[None, :]
    ws_ptr = w_scales + ns[:, None].to(tl.int64) * (K // GROUP) + g[None, :]
    acc = tl.zeros([BM, BN], tl.float32)
    for start in tl.range(0, K, BK, num_stages=STAGES):
        left = K - start
        a = tl.load(x_ptr, mask=(k < left // 2)[None, :], other=0)
        b = tl.load(w_ptr, mask=(k < left // 2)[:, None], other=0)
        a_s = tl.load(xs_ptr, mask=(g < left // GROUP)[None, :], other=0)
        b_s = tl.load(ws_ptr, mask=(g < left // GROUP)[None, :], other=0)
        if GROUP == 16:
            a_s, b_s = a_s.to(tl.float8e4nv, bitcast=True), b_s.to(tl.float8e4nv, bitcast=True)
        acc = tl.dot_scaled(a, a_s, "e2m1", b, b_s, "e2m1", acc)
        x_ptr += BK // 2
        w_ptr += BK // 2
        xs_ptr += BK // GROUP
        ws_ptr += BK // GROUP
    acc = acc * tl.load(row_scale + ns)[None, :]
    if TOKEN:
        acc = acc * tl.load(token_scale + ms)[:, None]
    if BIAS:
        acc = acc + tl.load(bias + ns).to(tl.float32)[None, :]
    out = y + m[:, None].to(tl.int64) * N + n[None, :]
    tl.store(out, acc.to(y.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])
