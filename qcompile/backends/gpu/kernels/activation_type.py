"""A quantized activation: codes, scales, and the names of their layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Activation"]


@dataclass(frozen=True)
class Activation:
    """A value ``[..., K]`` in a block format.

    Args:
        codes: uint8 ``[rows, width · bits / 8]`` with ``width`` K rounded up to whole groups; of two four-bit codes
            in a byte the low nibble comes first.
        scales: ``[rows, groups]``: uint8 for E4M3 and E8M0, float32 otherwise.
        tensor_scale: float32 ``[rows]``, or None: the second level, one for each row.
        meta: the format, from ``packing.describe``.
        shape: of the value.
        dtype: of the value, and of what is computed from it.
    """

    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor | None
    meta: dict[str, Any]
    shape: tuple[int, ...]
    dtype: torch.dtype
