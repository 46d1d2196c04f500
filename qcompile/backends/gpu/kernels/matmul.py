"""Products with a packed weight of 4 or 8 bits, and its expansion."""

from __future__ import annotations

import triton
import triton.language as tl

from .decode import decode_plane, group_scale

__all__ = ["expand_kernel", "matmul_kernel", "store_share"]


@triton.jit
def _spread(s, ROWS: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """``[rows, groups]`` repeated along the groups: ``[rows, groups · GROUP]``."""
    return tl.broadcast_to(s[:, :, None], (ROWS, GROUPS, GROUP)).reshape(ROWS, GROUPS * GROUP)


@triton.jit
def _scale_at(
    step, N, GROUPS: tl.constexpr, STEPS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, SCALE: tl.constexpr
):
    """Where the scales of a step begin, in a row of scales that starts at tile 0."""
    inside = step % STEPS * (COLUMNS // GROUP) if SCALE != "post" and COLUMNS >= GROUP else 0
    return step // STEPS * N * GROUPS + inside


@triton.jit
def _load_scale(
    s_row, P: tl.constexpr, SCALE: tl.constexpr, GROUP: tl.constexpr, PLANE: tl.constexpr, COLUMNS: tl.constexpr
):
    """Stored scales: of group P for "post", else of plane P, as ``[rows, groups]`` where its columns have several."""
    if SCALE == "post":
        s = tl.load(s_row + P)
    elif GROUP < COLUMNS:
        s = tl.load(s_row[:, None] + (P * (PLANE // GROUP) + tl.arange(0, COLUMNS // GROUP))[None, :])
    else:
        s = tl.load(s_row + P * PLANE // GROUP)
    return s


@triton.jit
def _of_pair(pair, G: tl.constexpr):
    """The bfloat16 scale of group G of two, from an int32 that holds both."""
    return (pair >> (16 * G)).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _times_scale(
    v, s, SCALE: tl.constexpr, GROUP: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, ASM: tl.constexpr
):
    """Levels of a plane times the scales of its groups: exact in bfloat16 for "mx", "nv"; "pre" rounds to it."""
    factor = s.to(v.dtype) if SCALE == "pre" else group_scale(s, SCALE, ASM)
    return v * (_spread(factor, ROWS, COLUMNS // GROUP, GROUP) if GROUP < COLUMNS else factor[:, None])


@triton.jit
def _dot(w, xt, acc, DOT: tl.constexpr, TERMS: tl.constexpr):
    """``acc + w x``; a wider ``x`` goes in as TERMS bfloat16 numbers, a wider ``w`` (a table's levels) as two."""
    hi = w.to(DOT)
    part = xt.to(DOT)
    acc = tl.dot(hi, part, acc, input_precision="ieee")
    if w.dtype != DOT:
        acc = tl.dot((w - hi.to(tl.float32)).to(DOT), part, acc, input_precision="ieee")
    if TERMS > 1:
        rest = xt.to(tl.float32) - part.to(tl.float32)
        part = rest.to(DOT)
        acc = tl.dot(hi, part, acc, input_precision="ieee")
        if TERMS > 2:
            acc = tl.dot(hi, (rest - part.to(tl.float32)).to(DOT), acc, input_precision="ieee")
    return acc


@triton.jit
def _narrow(w, KIND: tl.constexpr, DOT: tl.constexpr):
    """The exact kinds as DOT already, so that ``_dot`` sees nothing to split."""
    return w if KIND == "table" else w.to(DOT)


@triton.jit
def store_product(acc, row_scale, token_scale, bias, y, n, m, M, N, TOKEN: tl.constexpr, BIAS: tl.constexpr):
    """The product times the scales of its rows and tokens, plus the bias, as ``y [M, N]``."""
    ns, ms = tl.minimum(n, N - 1), tl.minimum(m, M - 1)
    acc = acc * tl.load(row_scale + ns)[:, None]
    if TOKEN:
        acc = acc * tl.load(token_scale + ms)[None, :]
    if BIAS:
        acc = acc + tl.load(bias + ns).to(tl.float32)[:, None]
    out = y + (m[None, :].to(tl.int64) * N + n[:, None])
    tl.store(out, acc.to(y.dtype.element_ty), mask=(m[None, :] < M) & (n[:, None] < N))


@triton.jit
def store_share(
    acc, row_scale, token_scale, bias, y, partial, counters, tile, split, splits, n, m, M, N, TOKEN: tl.constexpr,
    BIAS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """A tile of the product; with SPLIT there are several shares of it, which its last program adds up, in order."""
    if not SPLIT:
        store_product(acc, row_scale, token_scale, bias, y, n, m, M, N, TOKEN, BIAS)
    else:
        BN: tl.constexpr = acc.shape[0]
        BM: tl.constexpr = acc.shape[1]
        at = tl.arange(0, BN)[:, None] * BM + tl.arange(0, BM)[None, :]
        share = partial + tile.to(tl.int64) * splits * (BN * BM) + at
        tl.store(share + split * (BN * BM), acc)
        tl.debug_barrier()  # all shares of this program are written before it counts itself
        if tl.atomic_add(counters + tile, 1, sem="acq_rel") == splits - 1:
            acc = tl.zeros([BN, BM], tl.float32)
            for i in range(splits):
                acc += tl.load(share + i * (BN * BM), cache_modifier=".cg")
            tl.store(counters + tile, 0)  # ready for the next launch
            store_product(acc, row_scale, token_scale, bias, y, n, m, M, N, TOKEN, BIAS)


@triton.jit(do_not_specialize=["M"])
def matmul_kernel(
    x, words, scales, zeros, table, row_scale, token_scale, bias, y, partial, counters, M, N, K, stride_x,
    KIND: tl.constexpr, SCALE: tl.constexpr, ZERO: tl.constexpr, GROUP: tl.constexpr, PLANE: tl.constexpr,
    TOKEN: tl.constexpr, BIAS: tl.constexpr, EVEN_K: tl.constexpr, ASM: tl.constexpr, DOT: tl.constexpr,
    TERMS: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, SPLIT: tl.constexpr, COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """``y [M, N] = x [M, K] Wᵀ``: the decoded weight is the left operand, so that few tokens are the cheap side.

    Program (tile, split) takes BN rows of the weight, BM tokens and its share of K. Rows beyond the end repeat the
    last one and are not stored.
    """
    PLANES: tl.constexpr = 2 if KIND == "byte-int" or KIND == "byte-float" else 4
    BK: tl.constexpr = PLANES * PLANE
    GROUPS: tl.constexpr = BK // GROUP
    COUNT: tl.constexpr = GROUPS if SCALE == "post" else PLANES
    # Two scales of 16 bits in one load of 32, which the compiler pipelines, unlike smaller ones. For more of them there
    # would be no shared memory: two programs fill it.
    PAIR: tl.constexpr = SCALE == "pre" and GROUPS == 2
    STEPS: tl.constexpr = PLANE // COLUMNS  # of each plane's columns, in which a tile is taken
    pid, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    tiles_m = tl.cdiv(M, BM)
    # Eight weight tiles in turn read the same tokens, which stay in the cache meanwhile.
    band = pid // (8 * tiles_m)
    width = tl.minimum(tl.cdiv(N, BN) - band * 8, 8)
    pn = band * 8 + pid % (8 * tiles_m) % width
    pm = pid % (8 * tiles_m) // width
    n, m = pn * BN + tl.arange(0, BN), pm * BM + tl.arange(0, BM)
    ns = tl.minimum(n, N - 1)
    c = tl.arange(0, COLUMNS)
    steps = tl.cdiv(K, BK) * STEPS
    first, last = steps * split // splits, steps * (split + 1) // splits

    w_ptr = words + (ns[:, None] * PLANE + c[None, :])
    s_ptr, z_ptr = scales + ns * GROUPS, zeros + ns * GROUPS
    x_ptr = x + (m[None, :].to(tl.int64) * stride_x + c[:, None])
    acc = tl.zeros([BN, BM], tl.float32)
    if PAIR:
        pairs = scales.to(tl.pointer_type(tl.int32), bitcast=True) + ns
    elif SCALE != "row":  # scales of the next step are on their way while this one is computed
        at = _scale_at(first, N, GROUPS, STEPS, COLUMNS, GROUP, SCALE)
        s_0 = _load_scale(s_ptr + at, 0, SCALE, GROUP, PLANE, COLUMNS)
        s_1 = _load_scale(s_ptr + at, 1 % COUNT, SCALE, GROUP, PLANE, COLUMNS)
        s_2 = _load_scale(s_ptr + at, 2 % COUNT, SCALE, GROUP, PLANE, COLUMNS)
        s_3 = _load_scale(s_ptr + at, 3 % COUNT, SCALE, GROUP, PLANE, COLUMNS)
    for step in tl.range(first, last, num_stages=STAGES):
        kt = step // STEPS
        w = tl.load(w_ptr + (kt.to(tl.int64) * N * PLANE + step % STEPS * COLUMNS))
        if PAIR:
            pair = tl.load(pairs + kt * N)
        elif SCALE != "row":
            at = _scale_at(tl.minimum(step + 1, last - 1), N, GROUPS, STEPS, COLUMNS, GROUP, SCALE)
            n_0 = _load_scale(s_ptr + at, 0, SCALE, GROUP, PLANE, COLUMNS)
            n_1 = _load_scale(s_ptr + at, 1 % COUNT, SCALE, GROUP, PLANE, COLUMNS)
            n_2 = _load_scale(s_ptr + at, 2 % COUNT, SCALE, GROUP, PLANE, COLUMNS)
            n_3 = _load_scale(s_ptr + at, 3 % COUNT, SCALE, GROUP, PLANE, COLUMNS)
        for g in tl.static_range(GROUPS if SCALE == "post" else 1):
            part = tl.zeros([BN, BM], tl.float32) if SCALE == "post" else acc
            for p in tl.static_range(PLANES):
                if SCALE != "post" or p * PLANE // GROUP == g:
                    k = kt * BK + (p * PLANE + step % STEPS * COLUMNS)
                    inside = (m < M)[None, :] if EVEN_K else (m < M)[None, :] & (k + c < K)[:, None]
                    xt = tl.load(x_ptr + k, mask=inside, other=0.0)
                    zero = tl.load(z_ptr + (kt * N * GROUPS + p * PLANE // GROUP)) if ZERO else None
                    v = decode_plane(w, zero, table, KIND, p, ASM)
                    if PAIR:
                        v = _times_scale(v, _of_pair(pair, p * PLANE // GROUP), SCALE, GROUP, COLUMNS, BN, ASM)
                    elif SCALE == "mx" or SCALE == "nv" or SCALE == "pre":
                        s = s_0 if p == 0 else s_1 if p == 1 else s_2 if p == 2 else s_3
                        v = _times_scale(v, s, SCALE, GROUP, COLUMNS, BN, ASM)
                    part = _dot(_narrow(v, KIND, DOT), xt, part, DOT, TERMS)
            if SCALE == "post":
                s = s_0 if g == 0 else s_1 if g == 1 else s_2 if g == 2 else s_3
                acc += part * s.to(tl.float32)[:, None]
            else:
                acc = part
        if SCALE != "row" and not PAIR:
            s_0, s_1, s_2, s_3 = n_0, n_1, n_2, n_3
        if ASM and SCALE != "post":
            # Ends the sums of this tile: ptxas runs the matrix instructions one by one where they stay open.
            acc = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=f,f", [acc], dtype=tl.float32, is_pure=False, pack=1)

    store_share(
        acc, row_scale, token_scale, bias, y, partial, counters, pid, split, splits, n, m, M, N, TOKEN, BIAS, SPLIT
    )


@triton.jit(do_not_specialize=["first_row", "rows"])
def expand_kernel(
    words, scales, zeros, table, row_scale, out, first_row, rows, N, K,
    KIND: tl.constexpr, SCALE: tl.constexpr, ZERO: tl.constexpr, GROUP: tl.constexpr, PLANE: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """Rows ``first_row … + rows`` of the weight as ``out [rows, K]``, rounded once to its dtype."""
    PLANES: tl.constexpr = 2 if KIND == "byte-int" or KIND == "byte-float" else 4
    BK: tl.constexpr = PLANES * PLANE
    GROUPS: tl.constexpr = BK // GROUP
    at, kt = tl.program_id(0) * BN + tl.arange(0, BN), tl.program_id(1)
    n = tl.minimum(first_row + at, N - 1)
    c = tl.arange(0, PLANE)
    w = tl.load(words + kt.to(tl.int64) * N * PLANE + (n[:, None] * PLANE + c[None, :]))
    rs = tl.load(row_scale + n)[:, None]
    s_row = scales + kt * N * GROUPS + n * GROUPS
    for p in tl.static_range(PLANES):
        zero = tl.load(zeros + kt * N * GROUPS + n * GROUPS + p * PLANE // GROUP) if ZERO else None
        v = decode_plane(w, zero, table, KIND, p, False)
        if SCALE == "post":
            v = v * tl.load(s_row + p * PLANE // GROUP).to(tl.float32)[:, None]
        elif SCALE != "row":
            v = _times_scale(v, _load_scale(s_row, p, SCALE, GROUP, PLANE, PLANE), SCALE, GROUP, PLANE, BN, False)
        k = kt * BK + p * PLANE + c
        mask = (at < rows)[:, None] & (k < K)[None, :]
        tl.store(out + at[:, None].to(tl.int64) * K + k[None, :], (v * rs).to(out.dtype.element_ty), mask=mask)
