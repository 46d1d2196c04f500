"""Attention of few queries over a cache of packed codes.

Codes are decoded in registers: no plane of them is ever written out, and the first of two in a byte meets the even
features of a query, so that nothing is interleaved. The sequence is cut into shares, whose results a second kernel
joins (Flash-Decoding: Dao et al., 2023). Lengths are read on the device: a CUDA graph holds for all of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cache_writing import CacheLayout
from .launch import INTERPRETED

__all__ = ["attend_kernel", "attend_to_cache", "join_kernel"]

_LOG2E = 1.4426950408889634


@triton.jit
def _levels(byte, SHIFT: tl.constexpr, BITS: tl.constexpr, OFFSET: tl.constexpr, HALF: tl.constexpr):
    """The codes in some bits of bytes, as numbers. In float16 they become the last bits of 1024, which is exact."""
    LOW: tl.constexpr = 0 if OFFSET else -(1 << (BITS - 1))
    code = (byte >> SHIFT) & ((1 << BITS) - 1)
    if BITS == 8 and not OFFSET:
        code = code ^ 0x80  # two's complement, counted from the lowest
    if HALF:
        level = (code.to(tl.int16) | 0x6400).to(tl.float16, bitcast=True) - (1024.0 - LOW)
    else:
        level = code.to(tl.float32) + LOW
    return level


@triton.jit
def _feature(column, PLANE: tl.constexpr, PLANES: tl.constexpr, WIDTH: tl.constexpr, HALVED: tl.constexpr):
    """The features of a plane by column of bytes."""
    return PLANE * WIDTH + column if HALVED else column * PLANES + PLANE


@triton.jit
def _scaled(
    level, numbers, row, column, seen, PLANE: tl.constexpr, PLANES: tl.constexpr, WIDTH: tl.constexpr,
    GROUPS: tl.constexpr, OFFSET: tl.constexpr, HALVED: tl.constexpr,
):  # fmt: skip
    """Levels ``[tokens, width]`` by the scales of their groups; with one group, scores and weights are scaled."""
    if GROUPS > 1:
        group = _feature(column, PLANE, PLANES, WIDTH, HALVED) // (PLANES * WIDTH // GROUPS)
        level = level * tl.load(numbers + row + group, mask=seen, other=0.0).to(level.dtype)
        if OFFSET:
            level = level + tl.load(numbers + row + GROUPS + group, mask=seen, other=0.0).to(level.dtype)
    return level


@triton.jit(do_not_specialize=["capacity"])
def attend_kernel(
    q, key, key_numbers, value, value_numbers, lengths, peaks, sums, parts, capacity, scale,
    HEADS: tl.constexpr, SHARED: tl.constexpr, QUERIES: tl.constexpr, SIZE: tl.constexpr, SPLITS: tl.constexpr,
    KEY_FIRST: tl.constexpr, KEY_SECOND: tl.constexpr, KEY_GROUPS: tl.constexpr, KEY_OFFSET: tl.constexpr,
    KEY_HALVED: tl.constexpr, VALUE_FIRST: tl.constexpr, VALUE_SECOND: tl.constexpr, VALUE_GROUPS: tl.constexpr,
    VALUE_OFFSET: tl.constexpr, VALUE_HALVED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    STAGES: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """One share of the sequence for the queries that share a head of keys: weighted sums ``parts [.., ROWS, SIZE]``,
    and for each query the largest score, in powers of two, and the sum of weights relative to it."""
    split, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    DOT: tl.constexpr = tl.float16 if HALF else tl.float32
    KEY_PLANES: tl.constexpr = 2 if KEY_SECOND else 1
    VALUE_PLANES: tl.constexpr = 2 if VALUE_SECOND else 1
    KEY_WIDTH: tl.constexpr = SIZE // KEY_PLANES
    VALUE_WIDTH: tl.constexpr = SIZE // VALUE_PLANES
    KEY_NUMBERS: tl.constexpr = KEY_GROUPS * (1 + KEY_OFFSET)
    VALUE_NUMBERS: tl.constexpr = VALUE_GROUPS * (1 + VALUE_OFFSET)
    length = tl.load(lengths + head // HEADS)
    share = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK) * BLOCK
    first = split * share
    last = tl.minimum(first + share, length)
    row, at = tl.arange(0, ROWS), tl.arange(0, KEY_WIDTH)
    used = row < SHARED * QUERIES
    place = row // SHARED
    of = ((head * SHARED + row % SHARED) * QUERIES + place) * SIZE
    some = used[None, :]
    at_0 = q + of[None, :] + _feature(at, 0, KEY_PLANES, KEY_WIDTH, KEY_HALVED)[:, None]
    q_0 = tl.load(at_0, mask=some, other=0.0)
    total = tl.sum(q_0.to(tl.float32), 0)
    q_0 = q_0.to(DOT)
    q_1 = q_0
    if KEY_PLANES == 2:
        at_1 = q + of[None, :] + _feature(at, 1, KEY_PLANES, KEY_WIDTH, KEY_HALVED)[:, None]
        q_1 = tl.load(at_1, mask=some, other=0.0)
        total += tl.sum(q_1.to(tl.float32), 0)
        q_1 = q_1.to(DOT)
    value_at = tl.arange(0, VALUE_WIDTH)
    acc_0 = tl.zeros([VALUE_WIDTH, ROWS], tl.float32)
    acc_1 = tl.zeros([VALUE_WIDTH if VALUE_PLANES == 2 else 1, ROWS], tl.float32)
    peak, weight, shift = (
        tl.full([ROWS], float("-inf"), tl.float32),
        tl.zeros([ROWS], tl.float32),
        tl.zeros([ROWS], tl.float32),
    )
    for start in tl.range(first, last, BLOCK, num_stages=STAGES):
        token = start + tl.arange(0, BLOCK)
        inside = (token < last)[:, None]
        where = (head * capacity + token)[:, None]
        byte = tl.load(key + where * KEY_WIDTH + at[None, :], mask=inside, other=0)
        k = _scaled(
            _levels(byte, 0, KEY_FIRST, KEY_OFFSET, HALF), key_numbers, where * KEY_NUMBERS, at[None, :], inside, 0,
            KEY_PLANES, KEY_WIDTH, KEY_GROUPS, KEY_OFFSET, KEY_HALVED,
        )  # fmt: skip
        score = tl.dot(k, q_0, input_precision="ieee")
        if KEY_PLANES == 2:
            k = _scaled(_levels(byte, KEY_FIRST, KEY_SECOND, KEY_OFFSET, HALF), key_numbers, where * KEY_NUMBERS,
                        at[None, :], inside, 1, KEY_PLANES, KEY_WIDTH, KEY_GROUPS, KEY_OFFSET, KEY_HALVED)  # fmt: skip
            score = tl.dot(k, q_1, score, input_precision="ieee")
        if KEY_GROUPS == 1:
            score *= tl.load(key_numbers + where * KEY_NUMBERS, mask=inside, other=0.0).to(tl.float32)
            if KEY_OFFSET:
                begin = tl.load(key_numbers + where * KEY_NUMBERS + 1, mask=inside, other=0.0).to(tl.float32)
                score += begin * total[None, :]
        seen = inside & (token[:, None] <= (length - QUERIES + place)[None, :])
        score = tl.where(seen, score * scale, float("-inf"))
        top = tl.maximum(peak, tl.max(score, 0))
        safe = tl.where(top == float("-inf"), 0.0, top)
        p = tl.exp2(score - safe[None, :])
        fade = tl.exp2(peak - safe)
        weight = weight * fade + tl.sum(p, 0)
        shift, peak = shift * fade, top
        byte = tl.load(value + where * VALUE_WIDTH + value_at[None, :], mask=inside, other=0)
        if VALUE_GROUPS == 1:
            if VALUE_OFFSET:
                begin = tl.load(value_numbers + where * VALUE_NUMBERS + 1, mask=inside, other=0.0).to(tl.float32)
                shift += tl.sum(p * begin, 0)
            p *= tl.load(value_numbers + where * VALUE_NUMBERS, mask=inside, other=0.0).to(tl.float32)
        p = p.to(DOT)
        v = _scaled(_levels(byte, 0, VALUE_FIRST, VALUE_OFFSET, HALF), value_numbers, where * VALUE_NUMBERS,
                    value_at[None, :], inside, 0, VALUE_PLANES, VALUE_WIDTH, VALUE_GROUPS, VALUE_OFFSET,
                    VALUE_HALVED)  # fmt: skip
        acc_0 = tl.dot(tl.trans(v), p, acc_0 * fade[None, :], input_precision="ieee")
        if VALUE_PLANES == 2:
            v = _scaled(_levels(byte, VALUE_FIRST, VALUE_SECOND, VALUE_OFFSET, HALF), value_numbers,
                        where * VALUE_NUMBERS, value_at[None, :], inside, 1, VALUE_PLANES, VALUE_WIDTH, VALUE_GROUPS,
                        VALUE_OFFSET, VALUE_HALVED)  # fmt: skip
            acc_1 = tl.dot(tl.trans(v), p, acc_1 * fade[None, :], input_precision="ieee")
    line = (head * SPLITS + split) * ROWS + row
    tl.store(peaks + line, peak)
    tl.store(sums + line, weight)
    to = parts + line[None, :] * SIZE
    tl.store(to + _feature(value_at, 0, VALUE_PLANES, VALUE_WIDTH, VALUE_HALVED)[:, None], acc_0 + shift[None, :])
    if VALUE_PLANES == 2:
        tl.store(to + _feature(value_at, 1, VALUE_PLANES, VALUE_WIDTH, VALUE_HALVED)[:, None], acc_1 + shift[None, :])


@triton.jit
def join_kernel(
    peaks, sums, parts, y, SHARED: tl.constexpr, QUERIES: tl.constexpr, SIZE: tl.constexpr, SPLITS: tl.constexpr,
    MANY: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The shares of one query as its output ``[batch, heads, QUERIES, SIZE]``."""
    row, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    split, at = tl.arange(0, MANY), tl.arange(0, SIZE)
    there = split < SPLITS
    line = (head * SPLITS + split) * ROWS + row
    peak = tl.load(peaks + line, mask=there, other=float("-inf"))
    top = tl.max(peak, 0)
    factor = tl.exp2(peak - tl.where(top == float("-inf"), 0.0, top))
    weight = tl.sum(factor * tl.load(sums + line, mask=there, other=0.0), 0)
    part = tl.load(parts + line[:, None] * SIZE + at[None, :], mask=there[:, None], other=0.0)
    out = tl.sum(part * factor[:, None], 0) / tl.where(weight == 0.0, 1.0, weight)
    to = ((head * SHARED + row % SHARED) * QUERIES + row // SHARED) * SIZE
    tl.store(y + to + at, out.to(y.dtype.element_ty))


def attend_to_cache(
    q: Tensor, key: Tensor, key_numbers: Tensor, value: Tensor, value_numbers: Tensor, lengths: Tensor, scale: float,
    layouts: tuple[CacheLayout, CacheLayout], splits: int | None = None, block: int | None = None, warps: int = 4,
    stages: int = 2,
) -> Tensor:  # fmt: skip
    """``softmax(scale · q kᵀ) v`` over what caches hold, in float16 products for queries of 16 bits.

    The queries are the last of their sequences, and each sees what is not behind it. One without a length is zeros.

    Args:
        q: ``[batch, heads, queries, features]``, contiguous; heads that share keys are neighbours.
        key, value: codes, bytes ``[batch, heads of keys, capacity, width]``.
        key_numbers, value_numbers: float16 ``[batch, heads of keys, capacity, numbers]``.
        lengths: of each sequence with its queries, int32 ``[batch]``, on the device.
        scale: of scores.
        layouts: of keys and of values.
        splits: shares of a sequence; by default as many as give each multiprocessor two programs.
        block, warps, stages: tokens at a time, and how a program runs.

    Returns:
        As ``q``.
    """
    batch, heads, queries, size = q.shape
    held, capacity = key.shape[1], key.shape[2]
    shared = heads // held
    rows = max(16, triton.next_power_of_2(shared * queries))
    block = block or (256 if INTERPRETED else 64)
    if splits is None:
        splits = max(1, min(triton.cdiv(capacity, 4 * block), triton.cdiv(264, batch * held)))
    y = torch.empty_like(q)
    if y.numel() == 0:
        return y
    lines = batch * held * splits * rows
    peaks, sums, parts = (q.new_empty(lines * width, dtype=torch.float32) for width in (1, 1, size))
    attend_kernel[(splits, batch * held)](
        q, key.view(torch.uint8), key_numbers, value.view(torch.uint8), value_numbers, lengths, peaks, sums, parts,
        capacity, scale * _LOG2E, HEADS=held, SHARED=shared, QUERIES=queries, SIZE=size, SPLITS=splits,
        **layouts[0].constants("KEY"), **layouts[1].constants("VALUE"), ROWS=rows, BLOCK=block, STAGES=stages,
        HALF=q.dtype != torch.float32, num_warps=warps,
    )  # fmt: skip
    join_kernel[(shared * queries, batch * held)](
        peaks, sums, parts, y, SHARED=shared, QUERIES=queries, SIZE=size, SPLITS=splits,
        MANY=triton.next_power_of_2(splits), ROWS=rows,
    )  # fmt: skip
    return y
