"""Activations quantized as they run: every row on its own, in blocks along the last axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .activation_type import Activation
from .row_launches import has_kernel, run_rows
from .tables import table_of

__all__ = ["dequantize", "quantize_activation", "unscaled"]


def quantize_activation(x: Tensor, meta: dict[str, Any]) -> Activation:
    """Codes and scales as ``qcompile.formats`` defines them, row by row.

    Args:
        x: ``[..., K]`` in float32, bfloat16 or float16.
        meta: from ``packing.describe``.

    Raises:
        ValueError: for a format that no kernel quantizes to.
    """
    if not has_kernel(meta):
        raise ValueError(f"no kernel quantizes activations to '{meta['name']}'")
    return run_rows("plain", x, activation=meta)


def dequantize(activation: Activation) -> Tensor:
    """The value again, in its shape and dtype (products in float32, rounded once)."""
    meta, levels = activation.meta, _levels(activation)
    scale = _scale_value(activation.scales, meta)
    if activation.tensor_scale is not None:
        scale = scale * activation.tensor_scale[:, None]
    values = levels.view(*scale.shape, -1) * scale[..., None] if levels.numel() else scale
    return values.flatten(1)[:, : activation.shape[-1]].reshape(activation.shape).to(activation.dtype)


def unscaled(activation: Activation) -> tuple[Tensor, Tensor | None]:
    """``(values [rows, K], token [rows])`` whose product is the value: bfloat16 where that is exact, else float32."""
    meta, levels = activation.meta, _levels(activation)
    size = activation.shape[-1]
    if meta["group"] is None:
        return levels[:, :size].bfloat16(), activation.scales[:, 0]
    if meta["kind"] == "float" and meta["scale"] in ("e8m0", "e4m3"):
        scale = _scale_value(activation.scales, meta)
        values = (levels.view(*scale.shape, -1) * scale[..., None]).flatten(1) if levels.numel() else levels
        return values[:, :size].bfloat16(), activation.tensor_scale
    wide = Activation(
        activation.codes, activation.scales, activation.tensor_scale, meta, activation.shape, torch.float32
    )
    return dequantize(wide).reshape(-1, size), None


def _levels(activation: Activation) -> Tensor:
    """float32 ``[rows, width]``: what the codes stand for."""
    codes = activation.codes
    if activation.meta["bits"] == 4:
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten(1)
    return table_of(activation.meta["values"], codes.device)[codes.int()]


def _scale_value(scales: Tensor, meta: dict[str, Any]) -> Tensor:
    if meta["scale"] == "e8m0":
        bits = torch.where(scales == 0, 0x400000, torch.where(scales == 255, 0x7FC00000, scales.int() << 23))
        return bits.int().view(torch.float32)  # exp2 is not exact everywhere, nor are subnormals safe with it
    return scales.view(torch.float8_e4m3fn).float() if meta["scale"] == "e4m3" else scales
