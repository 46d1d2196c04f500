"""Rows of a quantized table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .tables import table_of

__all__ = ["embedding"]


def embedding(
    ids: Tensor, tensors: dict[str, Tensor], meta: dict[str, Any], dtype: torch.dtype = torch.float32
) -> Tensor:
    """``[..., K]``: the decoded rows ``ids`` (any shape and integer dtype) of a table from ``packing.pack_table``."""
    rows = _decode_rows(tensors, meta, ids.reshape(-1).long())
    return rows[:, : meta["K"]].to(dtype).reshape(*ids.shape, meta["K"])


def _decode_rows(tensors: dict[str, Tensor], meta: dict[str, Any], rows: Tensor) -> Tensor:
    """float32 ``[rows, width]``."""

    def pick(name: str) -> Tensor:
        return tensors[name][rows]

    codes, scales = pick("codes"), pick("scales")
    if meta["weight"]["bits"] == 4:
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten(1)
    levels = table_of(meta["weight"]["values"], codes.device)[codes.int()].view(*scales.shape, -1)
    if "zero_points" in tensors:
        levels = levels - pick("zero_points").float()[..., None]
    return (levels * scales[..., None]).flatten(1)
