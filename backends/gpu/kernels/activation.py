"""Activations quantized as they run: every row on its own, in blocks along the last axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .activation_type import Activation
from .forms import has_kernel, run_rows
from .tables import table_of

__all__ = ["dequantize", "quantize_activation", "unscaled"]


def quantize_activation(x: Tensor, meta: dict[str, Any]) -> Activation:
    """Codes and scales as ``qcompile.formats`` defines them, row by row.

    Args:
        x: ``[..., K]`` in float32, bfloat16 or float16.
        meta: a format without zero points, from ``packing.describe``.
    """
    return run_rows("plain", x, activation=meta) if has_kernel(meta) else _quantize(x, meta)


def _quantize(x: Tensor, meta: dict[str, Any]) -> Activation:
    """In plain torch: the formats that no kernel takes."""
    size = x.shape[-1]
    group = meta["group"] or max(size, 1)
    rows = x.reshape(-1, size).float()
    groups = torch.nn.functional.pad(rows, (0, -size % group)).view(rows.shape[0], -1, group)
    amax = groups.abs().amax(-1)
    second = _row_scale(amax, meta)
    candidates = [_candidate(groups, amax, second, target, meta) for target in meta["targets"] or [meta["max"]]]
    codes, scale, error = candidates[0]
    for other_codes, other_scale, other_error in candidates[1:]:
        keep = other_error < error
        codes, scale = torch.where(keep[..., None], other_codes, codes), torch.where(keep, other_scale, scale)
    codes = codes.flatten(1)
    if meta["bits"] == 4:
        codes = codes[:, ::2] | (codes[:, 1::2] << 4)
    return Activation(codes, _scale_bytes(scale, meta), second, meta, tuple(x.shape), x.dtype)


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


# ---- scales ------------------------------------------------------------------------------------------------------


def _row_scale(amax: Tensor, meta: dict[str, Any]) -> Tensor | None:
    if meta["rule"] == "four-thirds":
        return torch.full((amax.shape[0],), meta["constant"], device=amax.device)
    if meta["tensor_scale"] is None:
        return None
    target = (meta["targets"] or [meta["max"]])[0]
    scale = amax.amax(-1) / (target * meta["tensor_scale"])
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _candidate(
    groups: Tensor, amax: Tensor, second: Tensor | None, target: float, meta: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """(codes, stored scale, squared error) for one magnitude that the maximum is mapped onto."""
    if meta["scale"] == "e8m0":
        scale = _power_of_two(amax, meta)
    else:
        scale = amax / target
        scale = _STORE[meta["scale"]](scale if second is None else scale / second[:, None])
    effective = scale if second is None else scale * second[:, None]
    y = groups / effective.masked_fill(effective == 0, torch.inf)[..., None]
    codes = _encode(y, meta)
    table = table_of(meta["values"], y.device)
    error = (table[codes.int()] * effective[..., None] - groups).square().sum(-1)
    return codes, scale, error


_STORE = {
    "fp32": lambda scale: scale,
    "bf16": lambda scale: scale.bfloat16().float(),
    "fp16": lambda scale: scale.clamp(max=65504.0).half().float(),
    "e4m3": lambda scale: scale.clamp(max=448.0).to(torch.float8_e4m3fn).float(),
}


def _power_of_two(amax: Tensor, meta: dict[str, Any]) -> Tensor:
    """All rules for powers of two are one: the binade of amax, doubled where amax is above a part of it."""
    bits = amax.double().view(torch.int64)
    exponent = ((bits >> 52) & 0x7FF) - 1023
    above = (bits & ((1 << 52) - 1)).double() * 2.0**-52 + 1 > meta["threshold"]
    exponent = (exponent - meta["shift"] + above.long()).clamp(-127, 127)
    return ((exponent + 1023) << 52).view(torch.float64).float()


def _encode(y: Tensor, meta: dict[str, Any]) -> Tensor:
    if meta["kind"] == "integer":
        codes = y.round().clamp(meta["min"], meta["max"]).to(torch.int8).view(torch.uint8)
        return codes & (2 ** meta["bits"] - 1)
    y = y.clamp(-meta["max"], meta["max"])
    if meta["element"] == "e4m3":
        return y.to(torch.float8_e4m3fn).view(torch.uint8)
    levels = table_of(meta["values"], y.device)[: 2 ** (meta["bits"] - 1)]
    index = torch.bucketize(y.abs(), (levels[1:] + levels[:-1]) / 2)  # a tie goes to the lower level ...
    tie = y.abs() == ((levels[1:] + levels[:-1]) / 2)[index.clamp(max=len(levels) - 2)]
    index = index + (tie & (index % 2 == 1)).long()  # ... or to the even code
    return (index + torch.signbit(y) * len(levels)).to(torch.uint8)


def _scale_bytes(scale: Tensor, meta: dict[str, Any]) -> Tensor:
    if meta["scale"] == "e8m0":
        return ((scale.double().view(torch.int64) >> 52) - 1023 + 127).to(torch.uint8)
    if meta["scale"] == "e4m3":
        return scale.to(torch.float8_e4m3fn).view(torch.uint8)
    return scale


def _scale_value(scales: Tensor, meta: dict[str, Any]) -> Tensor:
    if meta["scale"] == "e8m0":
        bits = torch.where(scales == 0, 0x400000, torch.where(scales == 255, 0x7FC00000, scales.int() << 23))
        return bits.int().view(torch.float32)  # exp2 is not exact everywhere, nor are subnormals safe with it
    return scales.view(torch.float8_e4m3fn).float() if meta["scale"] == "e4m3" else scales
