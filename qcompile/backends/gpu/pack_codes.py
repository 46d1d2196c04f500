"""Layouts of weights for 8-bit and block-scaled matrix instructions; ``pack_words`` has those decoded into bfloat16.

"scaled": E2M1 codes in pairs along K, ``codes [N, width / 2]``, and the bytes of their scales ``[N, groups]``.
"bytes": INT4 codes of two planes in a byte, ``words [tiles, N, PLANE]``, and scales ``[tiles, N, groups of a tile]``.
Plane 0 and 1 of a byte are bits 0-3 and 4-7 in two's complement for INT8, or magnitude and sign at bits 0-2 and 7,
and 3-5 and 6, for FP8. Both have the float32 ``row_scale [N]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qcompile.backends.gpu.pack_words import numpy_of, tiled
from qcompile.formats import Format, Kind, Quantized, ScaleType
from qcompile.formats.packing import pack_codes
from qcompile.formats.scales import scale_code

__all__ = ["pack_bytes", "pack_scaled", "takes_bytes", "takes_scaled"]

_SCALED = {"sm_100": (16, 32), "sm_103": (16, 32), "sm_120": (16, 32), "gfx950": (32,)}  # groups by architecture
_PLANE = 64


def takes_scaled(weight: Format, activation: Format, arch: str) -> bool:
    """Whether an architecture has matrix instructions for both operands with their scales."""
    return all(
        fmt.element.name == "e2m1"
        and fmt.scale is (ScaleType.E4M3 if fmt.group == 16 else ScaleType.E8M0)
        and fmt.group in _SCALED.get(arch, ())
        and fmt.group == weight.group
        for fmt in (weight, activation)
    )


def takes_bytes(weight: Format, activation: Format, arch: str) -> bool:
    """Whether the kernel for INT4 times 8 bits does: codes up to ±7, groups of 32 and more, scales per token."""
    symmetric = weight.element.kind is Kind.INTEGER and weight.bits == 4 and weight.element.levels[0] == -7.0
    group = weight.group or 0
    grouped = group >= 32 and group & (group - 1) == 0 and not weight.zero_point and weight.tensor_scale is None
    token = activation.group is None and activation.element.name in ("e4m3", "int8")
    return arch == "sm_90" and symmetric and grouped and token


def pack_scaled(weights: Sequence[Quantized]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Weights of one format along N."""
    codes = torch.cat([pack_codes(q.codes, 4) for q in weights])
    scales = torch.cat([scale_code(q.scales, q.format.scale) for q in weights])
    ones = [torch.ones(()) if q.tensor_scale is None else q.tensor_scale for q in weights]
    row_scale = torch.cat([one.float().reshape(1).expand(q.shape[0]) for one, q in zip(ones, weights, strict=True)])
    fmt, size = weights[0].format, weights[0].shape[1]
    meta = {"K": size, "N": len(codes), "format": fmt.name, "layout": "scaled", "group": fmt.group}
    return {"codes": codes.numpy(), "scales": scales.numpy(), "row_scale": numpy_of(row_scale)}, meta


def pack_bytes(weights: Sequence[Quantized], floating: bool) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Weights of one format along N, for FP8 or INT8 activations."""
    fmt, size = weights[0].format, weights[0].shape[1]
    plane = min(_PLANE, fmt.group or _PLANE)
    tile = 2 * plane
    tiles = -(-size // tile)
    codes = torch.cat([q.codes for q in weights])[:, : tiles * tile]
    codes = torch.nn.functional.pad(codes, (0, tiles * tile - codes.shape[1]))
    first, second = codes.view(len(codes), tiles, 2, plane).unbind(2)
    words = _signed(first, 7, 0) | _signed(second, 6, 3) if floating else first | (second << 4)
    effective = torch.cat([q.all_scales.effective for q in weights])
    exact = fmt.scale is ScaleType.BF16
    group = min(fmt.group or tile, tile)
    tensors = {
        "words": words.permute(1, 0, 2).contiguous().view(torch.int8),
        "scales": tiled(effective.bfloat16() if exact else effective, fmt.group or size, group, tiles, tile),
        "row_scale": torch.full((len(codes),), 512.0 if floating else 0.0625),
    }
    meta = {"K": size, "N": len(codes), "format": fmt.name, "layout": "bytes", "plane": plane, "tile": tile,
            "tile_group": group, "scales": "bf16" if exact else "", "floating": floating}  # fmt: skip
    return {name: numpy_of(value) for name, value in tensors.items()}, meta


def _signed(codes: Tensor, sign: int, shift: int) -> Tensor:
    """Two's complement of four bits as magnitude at ``shift`` and sign at bit ``sign``."""
    negative = codes >> 3
    magnitude = torch.where(negative == 1, 16 - codes, codes)
    return (magnitude << shift) | (negative << sign)
