"""Weights in planes: decoded on the way into the matrix units, or expanded for torch's product."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from .launch import INTERPRETED, Tile, scaling_of, split_of, stages_of, tile_of
from .matmul import expand_kernel, matmul_kernel

__all__ = ["Planes"]

_SLAB, _ROWS = 1 << 24, 2048  # elements (32 MiB of bfloat16, which the cache holds) and least rows expanded at a time
_TERMS = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}  # bfloat16 numbers that make up one activation


class Planes:
    """A weight ``[N, K]`` in the layout "planes" of the packing.

    Args:
        tensors, meta: from ``packing.pack``; the tensors on the device that computes.
    """

    def __init__(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.meta, self.tensors = meta, dict(tensors)
        if meta["scales"] == "bf16":
            self.tensors["scales"] = tensors["scales"].view(torch.bfloat16)
        words = tensors["words"]
        self._asm = words.is_cuda and torch.version.hip is None and not INTERPRETED
        self._counters = torch.zeros(4096, dtype=torch.int32, device=words.device)
        self._layout = {"KIND": meta["codes"], "SCALE": meta["scaling"], "ZERO": "zeros" in tensors,
                        "GROUP": meta["tile_group"], "PLANE": meta["plane"]}  # fmt: skip

    def __call__(self, x: Tensor, bias: Tensor | None, token: Tensor | None = None, dtype: Any = None) -> Tensor:
        """``(x [M, K] · token [M]) Wᵀ + bias`` as ``[M, N]`` in ``dtype``, which is that of ``x`` if not given."""
        tile = tile_of(x.shape[0], self.meta["scaling"], self.meta["arch"])
        if tile is not None and (self.meta["codes"] != "table" or tile.tokens <= 32):
            return self.fused(x, bias, tile, token, dtype)
        wide = x if dtype is None else x.to(dtype)
        if token is None:
            return self.expanded(wide, bias)
        y = self.expanded(wide, None).mul_(token[:, None])
        return y if bias is None else y.add_(bias)

    def fused(
        self, x: Tensor, bias: Tensor | None, tile: Tile, token: Tensor | None = None, dtype: Any = None
    ) -> Tensor:
        """``x [M, K]`` times the weight in one kernel that decodes it on the way."""
        rows, size, out_size = x.shape[0], self.meta["K"], self.meta["N"]
        x = x if x.stride(-1) == 1 else x.contiguous()
        y = x.new_empty(rows, out_size, dtype=dtype or x.dtype)
        if y.numel() == 0:
            return y
        tiles = triton.cdiv(out_size, tile.rows) * triton.cdiv(rows, tile.tokens)
        tiles_k = self.tensors["words"].shape[0]
        split = split_of(tile, tiles, tiles_k) if tiles <= self._counters.numel() else 1
        partial = x.new_empty(tiles * split * tile.rows * tile.tokens if split > 1 else 0, dtype=torch.float32)
        matmul_kernel[(tiles, split)](
            x, *self._stored(), token, bias, y, partial, self._counters, rows, out_size, size, x.stride(0),
            **(self._layout | {"SCALE": self._scaling(x, tile)}), TOKEN=token is not None, BIAS=bias is not None,
            EVEN_K=size % self.meta["tile"] == 0, ASM=self._asm,
            DOT=triton.language.float32 if INTERPRETED else triton.language.bfloat16,
            TERMS=1 if INTERPRETED else _TERMS[x.dtype],
            BN=tile.rows, BM=tile.tokens, SPLIT=split > 1, COLUMNS=min(tile.columns, self.meta["plane"]),
            STAGES=stages_of(tile, self.meta["codes"]), num_warps=tile.warps,
        )  # fmt: skip
        return y

    def expanded(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``x [M, K]`` times the weight, expanded to the dtype of ``x`` a slab of rows at a time."""
        size, out_size = self.meta["K"], self.meta["N"]
        y = x.new_empty(x.shape[0], out_size)
        step = max(_ROWS, _SLAB // size // 128 * 128)
        slab = x.new_empty(min(step, out_size), size)
        for first in range(0, out_size if y.numel() else 0, step):
            part = slab[: min(step, out_size - first)]
            self.expand(part, first)
            torch.mm(x, part.T, out=y[:, first : first + part.shape[0]])
        return y if bias is None else y.add_(bias.to(y.dtype))

    def expand(self, out: Tensor, first: int) -> None:
        """Fills ``out`` with the weight's rows from ``first`` on."""
        block = 1024 if INTERPRETED else 64
        grid = (triton.cdiv(out.shape[0], block), self.tensors["words"].shape[0])
        expand_kernel[grid](
            *self._stored(), out, first, out.shape[0], self.meta["N"], self.meta["K"], **self._layout, BN=block
        )

    def _scaling(self, x: Tensor, tile: Tile) -> str:
        return scaling_of(self.meta["scaling"], self.meta["scales"], str(x.dtype).removeprefix("torch."), tile)

    def _stored(self) -> tuple[Tensor, ...]:
        stored, words = self.tensors, self.tensors["words"]
        return (words, stored.get("scales", words), stored.get("zeros", words), stored.get("table", words),
                stored["row_scale"])  # fmt: skip
