"""Packed caches: how bytes hold keys and values, and what writes new ones, to the bit what formats of caches define."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["CacheLayout", "append_kernel", "append_to_cache"]


class CacheLayout(NamedTuple):
    """How a cache ``[batch, heads, capacity, width]`` of bytes holds numbers.

    A byte has a code for each of ``bits``, the first in the lowest: of neighbouring features, or of one in each half
    where ``halved``. Each of ``groups`` of a token has a scale in float16 ``[batch, heads, capacity, numbers]`` and,
    with ``offset``, behind all scales what its codes count from. Without, codes are signed: of eight bits as two's
    complement, of fewer as counts from the lowest.
    """

    bits: tuple[int, ...]
    width: int
    groups: int
    offset: bool
    halved: bool

    @property
    def planes(self) -> int:
        """Codes of a byte."""
        return len(self.bits)

    @property
    def features(self) -> int:
        """Numbers of a head."""
        return self.planes * self.width

    @property
    def numbers(self) -> int:
        """Numbers in float16 that come with a token."""
        return self.groups * (1 + self.offset)

    def constants(self, name: str) -> dict[str, Any]:
        """The arguments of a kernel that say so."""
        first, second = self.bits if self.planes == 2 else (self.bits[0], 0)
        return {
            f"{name}_FIRST": first, f"{name}_SECOND": second, f"{name}_GROUPS": self.groups,
            f"{name}_OFFSET": self.offset, f"{name}_HALVED": self.halved,
        }  # fmt: skip


@triton.jit
def _half(x):
    return tl.minimum(tl.maximum(x, -65504.0), 65504.0).to(tl.float16)


@triton.jit(do_not_specialize=["capacity", "count"])
def append_kernel(
    x, matrix, codes, numbers, lengths, capacity, count, HEADS: tl.constexpr, SIZE: tl.constexpr,
    TURNED: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, GROUPS: tl.constexpr, OFFSET: tl.constexpr,
    HALVED: tl.constexpr,
):  # fmt: skip
    """One new token of one head: into its basis, rounded, and written at its place."""
    new, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    PLANES: tl.constexpr = 2 if SECOND else 1
    at = tl.arange(0, SIZE)
    if TURNED:
        line = tl.load(x + (head * count + new) * SIZE + at).to(tl.float32)
        square = tl.load(matrix + (head % HEADS) * SIZE * SIZE + at[:, None] * SIZE + at[None, :])
        v = tl.sum(square * line[None, :], 1)
    else:
        v = tl.load(x + (head * count + new) * SIZE + at).to(tl.float32)
    v = tl.reshape(v, [GROUPS, SIZE // GROUPS])
    group = tl.arange(0, GROUPS)
    LEVELS: tl.constexpr = (1 << FIRST) - 1
    high = tl.where(group < GROUPS // 2, LEVELS, (1 << SECOND) - 1 if HALVED else LEVELS).to(tl.float32)
    low = 0.0
    begin = tl.zeros([GROUPS], tl.float16)
    if OFFSET:
        begin = _half(tl.min(v, 1))
        scale = _half(tl.div_rn(tl.max(v, 1) - begin.to(tl.float32), high))
        v = v - begin.to(tl.float32)[:, None]
    else:
        low = -(1 << (FIRST - 1))
        high = high + low
        scale = _half(tl.div_rn(tl.max(tl.abs(v), 1), high))
    whole = scale.to(tl.float32)
    divisor = tl.where(whole == 0.0, 1.0, whole)[:, None] + tl.zeros_like(v)
    level = tl.minimum(tl.maximum(tl.div_rn(v, divisor), low), high[:, None])
    code = ((level + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000) - tl.cast(low, tl.int32)  # to even
    where = head * capacity + tl.load(lengths + head // HEADS) - count + new
    NUMBERS: tl.constexpr = GROUPS * (1 + OFFSET)
    tl.store(numbers + where * NUMBERS + group, scale)
    if OFFSET:
        tl.store(numbers + where * NUMBERS + GROUPS + group, begin)
    if PLANES == 1:
        byte = tl.reshape(code, [SIZE])
        if not OFFSET:
            byte = byte ^ 0x80
    elif HALVED:
        first, second = tl.split(tl.trans(tl.reshape(code, [2, SIZE // 2])))
        byte = first | (second << FIRST)
    else:
        first, second = tl.split(tl.reshape(code, [SIZE // 2, 2]))
        byte = first | (second << FIRST)
    tl.store(codes + where * (SIZE // PLANES) + tl.arange(0, SIZE // PLANES), byte.to(tl.uint8))


def append_to_cache(
    x: Tensor, codes: Tensor, numbers: Tensor, lengths: Tensor, layout: CacheLayout, matrix: Tensor | None = None
) -> None:
    """Round new keys or values and write them into a cache, the last of each sequence, in place.

    Args:
        x: ``[batch, heads, new, features]``.
        codes, numbers: the cache and the numbers of its tokens.
        lengths: of each sequence with what is new, int32 ``[batch]``.
        layout: of the cache.
        matrix: float32 ``[heads, features, features]``, by which ``x`` is multiplied first; None for its own basis.
    """
    batch, heads, new, size = x.shape
    if x.numel() == 0:
        return
    append_kernel[(new, batch * heads)](
        x.contiguous(), x if matrix is None else matrix, codes.view(torch.uint8), numbers, lengths, codes.shape[2], new,
        HEADS=heads, SIZE=size, TURNED=matrix is not None,
        **{name.removeprefix("X_"): held for name, held in layout.constants("X").items()},
        num_warps=1 if matrix is None else 4,
    )  # fmt: skip
