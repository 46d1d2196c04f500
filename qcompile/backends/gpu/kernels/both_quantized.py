"""Products whose activations stay quantized: INT4 times 8 bits, and block-scaled FP4 times FP4."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from .activation import unscaled
from .activation_type import Activation
from .int4_by_8bit import int4_by_8bit_kernel
from .launch import INTERPRETED, eight_tile_of, split_of
from .scaled import scaled_kernel

__all__ = ["Bytes", "Scaled"]


class Bytes:
    """A weight in the layout "bytes": INT4 for 8-bit activations with a scale for each token.

    Args:
        tensors, meta: from ``packing.pack``.
    """

    def __init__(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.meta, self.tensors = meta, dict(tensors)
        if meta["scales"] == "bf16":
            self.tensors["scales"] = tensors["scales"].view(torch.bfloat16)
        self._counters = torch.zeros(4096, dtype=torch.int32, device=tensors["words"].device)

    def __call__(self, x: Activation, bias: Tensor | None) -> Tensor:
        """``[M, N]`` in the dtype that the activation had."""
        return self.fused(x, bias, eight_tile_of(x.codes.shape[0], self.meta["N"]))

    def fused(self, x: Activation, bias: Tensor | None, tile: Any) -> Tensor:
        """The same with a tile given."""
        meta, words = self.meta, self.tensors["words"]
        rows, size, out_size = x.codes.shape[0], meta["K"], meta["N"]
        y = words.new_empty(rows, out_size, dtype=x.dtype)
        if y.numel() == 0:
            return y
        codes = x.codes
        if not INTERPRETED:
            codes = codes.view(torch.float8_e4m3fn if meta["floating"] else torch.int8)
        tiles = triton.cdiv(out_size, tile.rows) * triton.cdiv(rows, tile.tokens)
        split = split_of(tile, tiles, words.shape[0]) if 2 * tiles <= self._counters.numel() else 1
        partial = words.new_empty(tiles * split * tile.rows * tile.tokens if split > 1 else 0, dtype=torch.float32)
        int4_by_8bit_kernel[(tiles, split)](
            codes, words, self.tensors["scales"], self.tensors["row_scale"], x.scales, bias, y, partial,
            self._counters, rows, out_size, size, size, FLOAT=meta["floating"], GROUP=meta["tile_group"],
            PLANE=meta["plane"], BIAS=bias is not None, EVEN_K=size % meta["tile"] == 0, ASM=not INTERPRETED,
            BN=tile.rows, BM=tile.tokens, HALVES=tile.halves, SPLIT=split > 1, STAGES=tile.stages, num_warps=tile.warps,
        )  # fmt: skip
        return y


class Scaled:
    """A weight in the layout "scaled": E2M1 with block scales, for activations in the same kind of format.

    Args:
        tensors, meta: from ``packing.pack``.
    """

    def __init__(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.meta, self.tensors = meta, tensors

    def __call__(self, x: Activation, bias: Tensor | None) -> Tensor:
        """``[M, N]`` in the dtype that the activation had."""
        if INTERPRETED:  # which reads the E4M3 scales of a scaled product as E8M0
            return self._expanded(x, bias)
        meta, tensors = self.meta, self.tensors
        rows, out_size = x.codes.shape[0], meta["N"]
        y = x.codes.new_empty(rows, out_size, dtype=x.dtype)
        if y.numel() == 0:
            return y
        tile = SCALED_TILE
        grid = (triton.cdiv(rows, tile["BM"]) * triton.cdiv(out_size, tile["BN"]),)
        scaled_kernel[grid](
            x.codes, x.scales, tensors["codes"], tensors["scales"], tensors["row_scale"], x.tensor_scale, bias, y,
            rows, out_size, tensors["codes"].shape[1] * 2, GROUP=meta["group"], TOKEN=x.tensor_scale is not None,
            BIAS=bias is not None, **tile, num_warps=SCALED_WARPS,
        )  # fmt: skip
        return y

    def _expanded(self, x: Activation, bias: Tensor | None) -> Tensor:
        weight = Activation(self.tensors["codes"], self.tensors["scales"], None, x.meta,
                            (self.meta["N"], self.meta["K"]), torch.float32)  # fmt: skip
        levels, _ = unscaled(weight)
        values, token = unscaled(x)
        y = (values.float() @ levels.float().T) * self.tensors["row_scale"]
        y = y if token is None else y * token[:, None]
        return (y if bias is None else y + bias).to(x.dtype)


SCALED_TILE = {"BM": 128, "BN": 128, "BK": 128, "STAGES": 3}
SCALED_WARPS = 8
