"""Elementwise operators that feed quantized layers: norm, gate and modulation, with what follows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .activation_type import Activation
from .row_launches import run_rows
from .transform import Transform

__all__ = ["gate", "modulate", "rms_norm"]


def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, transform: Transform | None = None,
    activation: dict[str, Any] | None = None,
) -> Tensor | Activation:  # fmt: skip
    """``x / rms(x) · weight`` over the last axis, in float32 inside; then the transform, then the format."""
    return _finish(transform, activation, lambda last: run_rows("norm", x, weight, eps=eps, activation=last))


def gate(
    a: Tensor, b: Tensor, kind: str = "silu", transform: Transform | None = None,
    activation: dict[str, Any] | None = None,
) -> Tensor | Activation:  # fmt: skip
    """``act(a) · b``; ``kind`` is silu, gelu, gelu-tanh, relu, sigmoid or none."""
    if kind == "gelu":  # the error function is torch's
        a, kind = torch.nn.functional.gelu(a), "none"
    b = _every_row(b, a)
    return _finish(transform, activation, lambda last: run_rows(kind, a, b, activation=last))


def modulate(
    x: Tensor, shift: Tensor, scale: Tensor, transform: Transform | None = None,
    activation: dict[str, Any] | None = None,
) -> Tensor | Activation:  # fmt: skip
    """``x · (1 + scale) + shift`` (adaLN); ``shift`` and ``scale`` broadcast against ``x [..., K]``."""
    shift_rows, repeat = _rows_of(shift, x)
    scale_rows, other = _rows_of(scale, x)
    if repeat != other:
        shift_rows, scale_rows, repeat = _every_row(shift, x), _every_row(scale, x), 1
    return _finish(
        transform,
        activation,
        lambda last: run_rows("modulate", x, shift_rows, scale_rows, repeat=repeat, activation=last),
    )


def _rows_of(v: Tensor, x: Tensor) -> tuple[Tensor, int]:
    """``v`` as ``[rows, K]`` and how many rows of ``x`` in turn share one of them."""
    if (
        x.ndim >= 2
        and v.ndim == x.ndim
        and v.shape[-2] == 1
        and v.shape[:-2] == x.shape[:-2]
        and v.shape[-1] == x.shape[-1]
    ):
        return v.reshape(-1, x.shape[-1]).contiguous(), max(x.shape[-2], 1)
    return _every_row(v, x), 1


def _every_row(v: Tensor, x: Tensor) -> Tensor:
    return v.expand_as(x).reshape(-1, x.shape[-1]).contiguous()


def _finish(
    transform: Transform | None, activation: dict[str, Any] | None,
    run: Callable[[dict[str, Any] | None], Tensor | Activation],
) -> Tensor | Activation:  # fmt: skip
    if transform is None:
        return run(activation)
    y = run(None)
    return transform(y) if activation is None else transform.quantize(y, activation)
