"""State-space operators that export: Mamba's selective scan and Mamba-2's state space duality.

A module that calls ``selective_scan`` or ``state_space_duality`` exports to one node of the domain ``qcompile`` each,
of dynamic batch and length; ``qcompile.ir.capture`` brings the translation along. The node carries a function body of
standard operators around one ONNX ``Scan``, so any runtime runs it; backends may have a kernel for it. With a state to
go on from, the node has another name, and returns the state behind the last step, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompile.errors import InputError
from qcompile.ir.functions import DOMAIN

__all__ = [
    "duality", "duality_with_state", "scan", "scan_with_state", "selective_scan", "state_space_duality",
]  # fmt: skip

#: Steps whose decays are computed at once: memory grows with it, and the calls of small operators shrink.
SCAN_CHUNK = 64

#: Steps of one quadratic block of the dual form.
DUAL_CHUNK = 64


@overload
def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor: ...
@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]: ...
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """The selective scan of Mamba (Gu and Dao, 2023, algorithm 2), from a state of zeros or another one.

    ``h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t``, ``y_t = C_t h_t + D u_t``, computed in the type of its inputs.

    Args:
        u: ``[batch, length, channels]``.
        delta: step sizes, already behind softplus, ``[batch, length, channels]``.
        A: ``[channels, state]``, negative.
        B: ``[batch, length, state]``.
        C: ``[batch, length, state]``.
        D: ``[channels]``.
        state: ``h`` before the first step, ``[batch, channels, state]``.

    Returns:
        ``[batch, length, channels]``; with a state, that behind the last step as well.

    Raises:
        InputError: if the shapes do not fit together.
    """
    named = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D}
    letters = {"u": "blc", "delta": "blc", "A": "cn", "B": "bln", "C": "bln", "D": "c"}
    if state is None:
        _check(named, letters)
        return torch.ops.qcompile.selective_scan(u, delta, A, B, C, D)
    _check(named | {"state": state}, letters | {"state": "bcn"})
    return torch.ops.qcompile.selective_scan_with_state(u, delta, A, B, C, D, state)


@overload
def state_space_duality(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor: ...
@overload
def state_space_duality(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]: ...
def state_space_duality(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Mamba-2's state-space layer (Dao and Gu, 2024): one decay per head and step, from a state of zeros or another.

    ``H_t = exp(delta_t A) H_{t-1} + delta_t x_t B_tᵀ``, ``y_t = H_t C_t + D x_t`` for each head; a group of
    consecutive heads shares ``B`` and ``C``. Computed in the type of its inputs.

    Args:
        x: ``[batch, length, heads, head_dim]``.
        delta: step sizes, already behind softplus, ``[batch, length, heads]``.
        A: ``[heads]``, negative.
        B: ``[batch, length, groups, state]``; ``groups`` divides ``heads``.
        C: ``[batch, length, groups, state]``.
        D: ``[heads]``.
        state: ``H`` before the first step, ``[batch, heads, head_dim, state]``.

    Returns:
        ``[batch, length, heads, head_dim]``; with a state, that behind the last step as well.

    Raises:
        InputError: if the shapes do not fit together.
    """
    named = {"x": x, "delta": delta, "A": A, "B": B, "C": C, "D": D}
    letters = {"x": "blhp", "delta": "blh", "A": "h", "B": "blgn", "C": "blgn", "D": "h"}
    held, held_letters = ({}, {}) if state is None else ({"state": state}, {"state": "bhpn"})
    _check(named | held, letters | held_letters)
    if x.shape[2] % B.shape[2]:
        raise InputError(f"{x.shape[2]} heads cannot share {B.shape[2]} groups of B and C")
    if state is None:
        return torch.ops.qcompile.state_space_duality(x, delta, A, B, C, D)
    return torch.ops.qcompile.state_space_duality_with_state(x, delta, A, B, C, D, state)


def _check(tensors: Mapping[str, Tensor], letters: Mapping[str, str]) -> None:
    sizes: dict[str, tuple[Any, str]] = {}
    for name, axes in letters.items():
        if tensors[name].dim() != len(axes):
            raise InputError(f"{name} has {tensors[name].dim()} axes, not {len(axes)}")
        for axis, letter in enumerate(axes):
            size, other = sizes.setdefault(letter, (tensors[name].shape[axis], name))
            if size != tensors[name].shape[axis]:
                raise InputError(f"axis {axis} of {name} has size {tensors[name].shape[axis]}, but {other} says {size}")


# -- computed by torch -------------------------------------------------------------------------------------------


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """``selective_scan`` by plain operators of torch, all of them differentiable."""
    return scan_with_state(u, delta, A, B, C, D, u.new_zeros(u.shape[0], u.shape[2], A.shape[1]))[0]


def scan_with_state(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same from a state on, with the last one."""
    pieces = [u.new_zeros(u.shape[0], 0, u.shape[2])]
    for start in range(0, u.shape[1], SCAN_CHUNK):
        at = slice(start, start + SCAN_CHUNK)
        decay = torch.exp(delta[:, at, :, None] * A).unbind(1)
        drive = ((delta[:, at] * u[:, at])[..., None] * B[:, at, None, :]).unbind(1)
        states = []
        for kept, added in zip(decay, drive, strict=True):
            state = torch.addcmul(added, kept, state)
            states.append(state)
        pieces.append((torch.stack(states, 1) @ C[:, at, :, None]).squeeze(-1))
    return torch.cat(pieces, 1) + D * u, state


def duality(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """``state_space_duality`` by plain operators of torch, all of them differentiable."""
    start = x.new_zeros(x.shape[0], x.shape[2], x.shape[3], B.shape[3])
    return duality_with_state(x, delta, A, B, C, D, start)[0]


def duality_with_state(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same from a state on, with the last one."""
    batch, length, heads, width = x.shape
    repeat, rest = heads // B.shape[2], -length % DUAL_CHUNK
    B, C = (m.repeat_interleave(repeat, 2) for m in (B, C))

    def cut(value: Tensor) -> Tensor:  # [batch, chunks, heads, steps, ...]; a step size of zero changes nothing
        padded = F.pad(value, [0, 0] * (value.dim() - 2) + [0, rest])
        return padded.unflatten(1, (-1, DUAL_CHUNK)).transpose(2, 3)

    drive, b, c = cut(x * delta[..., None]), cut(B), cut(C)
    rate = cut(delta * A)
    passed = rate.cumsum(-1)  # log of the decay since the start of the chunk
    later = torch.ones(DUAL_CHUNK, DUAL_CHUNK, dtype=torch.bool, device=x.device).tril(-1)
    # Sums of their own between any two steps, because differences of long sums cancel.
    between = rate[..., None].masked_fill(~later, 0).cumsum(-2).masked_fill(later.mT, -torch.inf).exp()
    within = (c @ b.mT * between) @ drive
    left = (drive * between[..., -1, :, None]).mT @ b  # what each chunk adds, [..., width, state]
    before = []
    for chunk in range(left.shape[1]):
        before.append(state)
        state = passed[:, chunk, :, -1, None, None].exp() * state + left[:, chunk]
    carried = passed.exp()[..., None] * (c @ torch.stack(before, 1).mT) if before else within
    y = (within + carried).transpose(2, 3).reshape(batch, length + rest, heads, width)
    return y[:, :length] + D[:, None] * x, state


def _define(name: str, function: Callable[..., Tensor]) -> None:
    """Register ``qcompile::name``: differentiable, opaque to ``torch.export``, shaped like its first input."""

    def compute(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        return function(u, delta, A, B, C, D)

    def differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            return torch.autograd.grad(function(*inputs), inputs, gradient)

    op = torch.library.custom_op(f"{DOMAIN}::{name}", compute, mutates_args=())
    op.register_fake(lambda u, *_: torch.empty_like(u, memory_format=torch.contiguous_format))
    op.register_autograd(differentiate, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


def _define_with_state(name: str, function: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Register ``qcompile::name``, whose last input is a state, and whose results are shaped like the first and the
    last."""

    def compute(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        y, last = function(u, delta, A, B, C, D, state)
        return y, last.clone()  # a result that is an input may not be

    def differentiate(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            return torch.autograd.grad(function(*inputs), inputs, gradients)

    def shaped(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (inputs[0], inputs[-1]))

    op = torch.library.custom_op(f"{DOMAIN}::{name}", compute, mutates_args=())
    op.register_fake(shaped)
    op.register_autograd(differentiate, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


_define("selective_scan", scan)
_define("state_space_duality", duality)
_define_with_state("selective_scan_with_state", scan_with_state)
_define_with_state("state_space_duality_with_state", duality_with_state)
