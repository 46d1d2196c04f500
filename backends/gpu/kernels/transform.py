"""Online transforms of the last axis, alone or fused with the quantization that follows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .activation import quantize_activation
from .activation_type import Activation

__all__ = ["Transform"]


class Transform:
    """A product of steps, first applied first.

    Args:
        tensors, meta: from ``packing.pack_transform``; the tensors on the device that computes.
    """

    def __init__(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.tensors, self.meta = tensors, meta

    def __call__(self, x: Tensor) -> Tensor:
        """``T x`` along the last axis, in the shape and dtype of ``x``; float32 inside."""
        y = x.reshape(-1, self.meta["size"]).float()
        for i, step in enumerate(self.meta["steps"]):
            y = _step(y, step, self.tensors[f"m{i}"])
        return y.reshape(x.shape).to(x.dtype)

    def quantize(self, x: Tensor, activation: dict[str, Any]) -> Activation:
        """``T x`` in a block format, without rounding to the dtype of ``x`` between."""
        quantized = quantize_activation(self(x.float()), activation)
        return Activation(
            quantized.codes, quantized.scales, quantized.tensor_scale, activation, tuple(x.shape), x.dtype
        )


def _step(y: Tensor, step: dict[str, Any], m: Tensor) -> Tensor:
    rows, size = y.shape
    if step["kind"] == "permutation":
        return y[:, m.long()]
    if step["kind"] == "diagonal":
        return y * m.float()
    if step["kind"] == "blocks":
        return torch.einsum("rob,ocb->roc", y.view(rows, step["outer"], -1), m.float()).reshape(rows, size)
    view = y.view(rows, step["outer"], m.shape[0], step["inner"])
    return torch.einsum("romi,nm->roni", view, m.float()).reshape(rows, size)
