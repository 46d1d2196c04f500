"""The selective scan of Mamba-1, and Mamba-2's layer by it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import INTERPRETED

__all__ = ["scan_kernel", "selective_scan", "state_space_duality"]


@triton.jit(do_not_specialize=["length"])
def scan_kernel(
    u, delta, A, B, C, D, y, length, channels, states,
    STATES: tl.constexpr, SKIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program walks through time with the state of BLOCK channels of one sample in registers."""
    d, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
    mine, used = d < channels, n < states
    both = mine[:, None] & used[None, :]
    a = tl.load(A + d[:, None] * states + n[None, :], mask=both, other=0.0).to(tl.float32)
    skip = tl.load(D + d, mask=mine, other=0.0).to(tl.float32) if SKIP else tl.zeros([BLOCK], tl.float32)
    at = tl.program_id(1).to(tl.int64) * length
    row, few = at * channels + d, at * states + n
    h = tl.zeros([BLOCK, STATES], tl.float32)
    for _ in range(length):
        u_t = tl.load(u + row, mask=mine, other=0.0).to(tl.float32)
        step = tl.load(delta + row, mask=mine, other=0.0).to(tl.float32)
        b = tl.load(B + few, mask=used, other=0.0).to(tl.float32)
        c = tl.load(C + few, mask=used, other=0.0).to(tl.float32)
        h = tl.exp(step[:, None] * a) * h + (step * u_t)[:, None] * b[None, :]
        out = tl.sum(h * c[None, :], 1) + skip * u_t
        tl.store(y + row, out.to(y.dtype.element_ty), mask=mine)
        row += channels
        few += states


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> Tensor:
    """``h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t``, ``y_t = C_t h_t + D u_t``, in float32 inside.

    Args:
        u, delta: ``[batch, length, channels]``.
        A: ``[channels, state]``.
        B, C: ``[batch, length, state]``.
        D: ``[channels]``, or None.

    Returns:
        ``[batch, length, channels]`` in the dtype of ``u``.
    """
    u, delta, A, B, C = (v.contiguous() for v in (u, delta, A, B, C))
    y = torch.empty_like(u)
    batch, length, channels = u.shape
    if y.numel() == 0:
        return y
    block = 512 if INTERPRETED else 16
    scan_kernel[(triton.cdiv(channels, block), batch)](
        u, delta, A, B, C, A if D is None else D, y, length, channels, A.shape[1],
        STATES=triton.next_power_of_2(A.shape[1]), SKIP=D is not None, BLOCK=block, num_warps=1,
    )  # fmt: skip
    return y


def state_space_duality(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Mamba-2's layer: one decay a head and step, ``B`` and ``C`` shared by a group of consecutive heads.

    A head's values are channels of the selective scan with the head's decay for every state; a launch for each group.

    Args:
        x: ``[batch, length, heads, width]``.
        delta: ``[batch, length, heads]``.
        A, D: ``[heads]``.
        B, C: ``[batch, length, groups, state]``.

    Returns:
        ``[batch, length, heads, width]`` in the dtype of ``x``.
    """
    width, groups, state = x.shape[3], B.shape[2], B.shape[3]
    parts = []
    for g, (u, step, a, d) in enumerate(
        zip(x.chunk(groups, 2), delta.chunk(groups, 2), A.chunk(groups), D.chunk(groups), strict=True)
    ):
        decay = a.repeat_interleave(width)[:, None].expand(-1, state)
        step = step.repeat_interleave(width, 2)
        parts.append(selective_scan(u.flatten(2), step, decay, B[:, :, g], C[:, :, g], d.repeat_interleave(width)))
    return torch.cat(parts, -1).view(x.shape)
