"""Functions of torch for what shipped programs have kernels for: the compiler's own engine calls these."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from qcompile.ir import state_space
from qcompile.threads import alone

__all__ = ["duality", "duality_with_state", "rms_norm", "rotary", "scan", "scan_with_state"]


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x²) + eps) · scale`` over the axes that ``scale`` has."""
    axes = tuple(range(x.ndim - max(scale.ndim, 1), x.ndim))
    wide = torch.promote_types(x.dtype, torch.float32)
    square = x.to(wide).square().mean(axes, keepdim=True)
    return (x * torch.rsqrt(square + eps)).to(x.dtype) * scale


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs ``(x_i, x_{i + n/2})`` turned by angles whose cosines and sines are ``[..., n / 2]``."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def scan(u: Tensor, *others: Tensor) -> Tensor:
    """``state_space.scan``, in float32 at least: its rounding would add up."""
    with _steps(u):
        return state_space.scan(*_wide(u, *others)).to(u.dtype)


def scan_with_state(u: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    """``state_space.scan_with_state``, likewise; the state has the type of ``u``."""
    with _steps(u):
        y, state = state_space.scan_with_state(*_wide(u, *others))
    return y.to(u.dtype), state.to(u.dtype)


def duality(x: Tensor, *others: Tensor) -> Tensor:
    """``state_space.duality``, likewise."""
    return state_space.duality(*_wide(x, *others)).to(x.dtype)


def duality_with_state(x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    """``state_space.duality_with_state``, likewise."""
    y, state = state_space.duality_with_state(*_wide(x, *others))
    return y.to(x.dtype), state.to(x.dtype)


def _steps(u: Tensor) -> AbstractContextManager[None]:
    """Around many small steps."""
    return alone() if u.device.type == "cpu" else nullcontext()


def _wide(*inputs: Tensor) -> list[Tensor]:
    wide = torch.promote_types(inputs[0].dtype, torch.float32)
    return [x.to(wide) for x in inputs]
