"""The linear layer: a packed weight and the kernels that multiply by it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .activation import Activation, dequantize, quantize_activation
from .embedding import decode_rows

__all__ = ["Linear"]


class Linear:
    """``y = x Wᵀ + bias`` with a quantized ``W [N, K]``.

    Args:
        tensors, meta: from ``packing.pack``; the tensors on the device that computes.
    """

    def __init__(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.tensors, self.meta = tensors, meta

    def __call__(self, x: Tensor | Activation, bias: Tensor | None = None) -> Tensor:
        """``[..., N]`` in the dtype of ``x``.

        Args:
            x: ``[..., K]`` in float32, bfloat16 or float16 (quantized first if the weight's scheme says so), or
                a value that is quantized already.
            bias: ``[N]``.
        """
        if isinstance(x, Tensor) and self.meta["activation"] is not None:
            x = quantize_activation(x, self.meta["activation"])
        value = dequantize(x) if isinstance(x, Activation) else x
        weight = decode_rows(self.tensors, self.meta, None)[:, : self.meta["K"]]
        return torch.nn.functional.linear(value, weight.to(value.dtype), None if bias is None else bias.to(value.dtype))

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the siblings that were packed together, as views of ``y [..., N]``."""
        return y.split(self.meta["splits"], -1)
