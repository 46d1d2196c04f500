"""Elementwise operators that feed quantized layers: norm, gate and modulation, with what follows them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .activation import Activation, quantize_activation
from .transform import Transform

__all__ = ["gate", "modulate", "rms_norm"]

_GATES = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu-tanh": lambda a: torch.nn.functional.gelu(a, approximate="tanh"),
    "relu": torch.nn.functional.relu,
    "sigmoid": torch.sigmoid,
    "none": lambda a: a,
}


def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, transform: Transform | None = None,
    activation: dict[str, Any] | None = None,
) -> Tensor | Activation:  # fmt: skip
    """``x / rms(x) · weight`` over the last axis, in float32 inside; then the transform, then the format."""
    wide = x.float()
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    y = y if weight is None else y * weight.float()
    return _finish(y.to(x.dtype), transform, activation)


def gate(
    a: Tensor, b: Tensor, kind: str = "silu", transform: Transform | None = None,
    activation: dict[str, Any] | None = None,
) -> Tensor | Activation:  # fmt: skip
    """``act(a) · b``; ``kind`` is silu, gelu, gelu-tanh, relu, sigmoid or none."""
    return _finish((_GATES[kind](a.float()) * b.float()).to(a.dtype), transform, activation)


def modulate(
    x: Tensor, shift: Tensor, scale: Tensor, transform: Transform | None = None,
    activation: dict[str, Any] | None = None,
) -> Tensor | Activation:  # fmt: skip
    """``x · (1 + scale) + shift`` (adaLN); ``shift`` and ``scale`` broadcast against ``x [..., K]``."""
    return _finish((x.float() * (1 + scale.float()) + shift.float()).to(x.dtype), transform, activation)


def _finish(y: Tensor, transform: Transform | None, activation: dict[str, Any] | None) -> Tensor | Activation:
    if transform is not None:
        return transform(y) if activation is None else transform.quantize(y, activation)
    return y if activation is None else quantize_activation(y, activation)
