"""Functions of torch for what shipped programs have kernels for: the compiler's own engine calls these."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from qcompile.ir import state_space
from qcompile.threads import alone

__all__ = ["duality", "rms_norm", "rotary", "scan"]


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
    wide = torch.promote_types(u.dtype, torch.float32)
    with alone() if u.device.type == "cpu" else nullcontext():  # many small steps
        return state_space.scan(u.to(wide), *(x.to(wide) for x in others)).to(u.dtype)


def duality(x: Tensor, *others: Tensor) -> Tensor:
    """``state_space.duality``, likewise."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return state_space.duality(x.to(wide), *(y.to(wide) for y in others)).to(x.dtype)
