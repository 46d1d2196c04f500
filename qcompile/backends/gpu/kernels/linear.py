"""The linear layer: a packed weight, and what its scheme does with the input."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .activation import quantize_activation, unscaled
from .activation_type import Activation
from .both_quantized import Bytes, Scaled
from .weight_only import Planes

__all__ = ["Linear"]

_PRODUCTS = {"planes": Planes, "bytes": Bytes, "scaled": Scaled}


class Linear:
    """``y = x Wᵀ + bias`` with a quantized ``W [N, K]``.

    Args:
        tensors, meta: from ``packing.pack``; the tensors on the device that computes.
    """

    def __init__(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.meta = meta
        self.product = _PRODUCTS[meta["layout"]](tensors, meta)

    def __call__(self, x: Tensor | Activation, bias: Tensor | None = None) -> Tensor:
        """``[..., N]`` in the dtype of ``x``.

        Args:
            x: ``[..., K]`` in float32, bfloat16 or float16 (quantized first if the weight's scheme says so), or
                a value that is quantized already.
            bias: ``[N]``.
        """
        if isinstance(x, Tensor) and self.meta["activation"] is not None:
            x = quantize_activation(x, self.meta["activation"])
        if isinstance(x, Tensor):
            y = self.product(x.reshape(-1, self.meta["K"]), bias)
        elif isinstance(self.product, Planes):  # codes times block scales are exact in bfloat16
            values, token = unscaled(x)
            y = self.product(values, bias, token, x.dtype)
        else:
            y = self.product(x, bias)
        return y.view(*x.shape[:-1], self.meta["N"])

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the siblings that were packed together, as views of ``y [..., N]``."""
        return y.split(self.meta["splits"], -1)
