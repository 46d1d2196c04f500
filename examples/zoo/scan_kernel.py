"""The selective scan as two Triton kernels, used to train `mamba.py` on a GPU.

One program owns 32 channels of one row and walks through time with the state in registers. The
backward pass first walks forward again and keeps every state in a scratch buffer, then walks back:
recomputing is cheaper than keeping the states of all layers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["selective_scan"]

CHANNELS_PER_PROGRAM = 32


@triton.jit
def _forward_kernel(u, delta, A, B, C, D, y, length, channels, N: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, N)
    a = tl.load(A + d[:, None] * N + n[None, :])
    skip = tl.load(D + d)
    h = tl.zeros([BLOCK, N], tl.float32)
    for t in range(length):
        at = row * length + t
        u_t = tl.load(u + at * channels + d)
        step = tl.load(delta + at * channels + d)
        b = tl.load(B + at * N + n)
        c = tl.load(C + at * N + n)
        h = tl.exp(step[:, None] * a) * h + (step * u_t)[:, None] * b[None, :]
        tl.store(y + at * channels + d, tl.sum(h * c[None, :], 1) + skip * u_t)


@triton.jit
def _backward_kernel(
    u, delta, A, B, C, D, dy, du, d_delta, dA, dB, dC, states,
    length, channels, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    d = block * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, N)
    at_dn = d[:, None] * N + n[None, :]
    a = tl.load(A + at_dn)
    skip = tl.load(D + d)

    h = tl.zeros([BLOCK, N], tl.float32)
    for t in range(length):
        at = row * length + t
        # states[t] is the state before step t
        tl.store(states + at * channels * N + at_dn, h)
        u_t = tl.load(u + at * channels + d)
        step = tl.load(delta + at * channels + d)
        b = tl.load(B + at * N + n)
        h = tl.exp(step[:, None] * a) * h + (step * u_t)[:, None] * b[None, :]
    tl.debug_barrier()

    dh = tl.zeros([BLOCK, N], tl.float32)
    a_gradient = tl.zeros([BLOCK, N], tl.float32)
    # Each block of channels writes its own share of dB and dC; the caller adds them up.
    share = (block * tl.num_programs(0) + row) * length * N
    for back in range(length):
        t = length - 1 - back
        at = row * length + t
        u_t = tl.load(u + at * channels + d)
        step = tl.load(delta + at * channels + d)
        b = tl.load(B + at * N + n)
        c = tl.load(C + at * N + n)
        dy_t = tl.load(dy + at * channels + d)
        before = tl.load(states + at * channels * N + at_dn)
        decay = tl.exp(step[:, None] * a)
        dh += dy_t[:, None] * c[None, :]
        tl.store(dC + share + t * N + n, tl.sum(dy_t[:, None] * h, 0))
        through_decay = dh * before * decay
        through_input = tl.sum(dh * b[None, :], 1)
        tl.store(d_delta + at * channels + d, tl.sum(through_decay * a, 1) + through_input * u_t)
        tl.store(du + at * channels + d, through_input * step + skip * dy_t)
        tl.store(dB + share + t * N + n, tl.sum(dh * (step * u_t)[:, None], 0))
        a_gradient += through_decay * step[:, None]
        dh = dh * decay
        h = before
    tl.store(dA + row * channels * N + at_dn, a_gradient)


def _grid(u: Tensor) -> tuple[int, int]:
    if u.shape[2] % CHANNELS_PER_PROGRAM:
        raise ValueError(f"{u.shape[2]} channels are no multiple of {CHANNELS_PER_PROGRAM}")
    return u.shape[0], u.shape[2] // CHANNELS_PER_PROGRAM


@torch.library.custom_op("zoo::scan_forward", mutates_args=())
def _scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    inputs = [x.contiguous() for x in (u, delta, A, B, C, D)]
    y = torch.empty_like(inputs[0])
    _forward_kernel[_grid(u)](*inputs, y, u.shape[1], u.shape[2], N=A.shape[1], BLOCK=CHANNELS_PER_PROGRAM, num_warps=1)
    return y


@_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    return torch.empty_like(u, memory_format=torch.contiguous_format)


@torch.library.custom_op("zoo::scan_backward", mutates_args=())
def _scan_backward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dy: Tensor) -> list[Tensor]:
    inputs = [x.contiguous() for x in (u, delta, A, B, C, D, dy)]
    grid = _grid(u)
    du, d_delta = torch.empty_like(inputs[0]), torch.empty_like(inputs[1])
    dA = u.new_empty(grid[0], *A.shape)
    dB, dC = u.new_empty(grid[1], *B.shape), u.new_empty(grid[1], *C.shape)
    states = u.new_empty(*u.shape, A.shape[1])
    _backward_kernel[grid](
        *inputs, du, d_delta, dA, dB, dC, states, u.shape[1], u.shape[2],
        N=A.shape[1], BLOCK=CHANNELS_PER_PROGRAM, num_warps=1,
    )  # fmt: skip
    dD = (inputs[6] * inputs[0]).sum((0, 1))
    return [du, d_delta, dA.sum(0), dB.sum(0), dC.sum(0), dD]


@_scan_backward.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dy: Tensor) -> list[Tensor]:
    inputs = (u, delta, A, B, C, D)
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]


def _save_inputs(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, dy: Tensor) -> tuple[Tensor, ...]:
    return tuple(_scan_backward(*ctx.saved_tensors, dy))


_scan.register_autograd(_differentiate, setup_context=_save_inputs)


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """What `mamba.selective_scan` computes, for float32 tensors on a GPU, with gradients."""
    return _scan(u, delta, A, B, C, D)
