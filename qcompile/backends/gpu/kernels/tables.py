"""Small tables of numbers on the device, made once: a CUDA graph cannot hold a copy from the host."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

__all__ = ["table_of"]


def table_of(values: Sequence[float], device: torch.device) -> Tensor:
    """float32 ``[len(values)]``, the same tensor at every call."""
    return _made(tuple(values), device)


@cache
def _made(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
