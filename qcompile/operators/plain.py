"""Functions of torch for what shipped programs have kernels for: the compiler's own engine calls these."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rms_norm", "rotary"]


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
