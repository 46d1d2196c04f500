"""Launches of the kernel over rows."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from .activation_type import Activation
from .launch import INTERPRETED
from .rows import rows_kernel

__all__ = ["ELEMENTS", "encoding", "empty_activation", "has_kernel", "run_rows"]

#: (mantissa bits, bias) of the float elements.
ELEMENTS = {"e2m1": (1, 1), "e3m0": (0, 3), "e2m3": (3, 1), "e3m2": (2, 3), "e4m3": (3, 7), "e5m2": (2, 15)}
_STORED = {"e8m0": torch.uint8, "e4m3": torch.uint8}


def has_kernel(meta: dict[str, Any]) -> bool:
    """Whether the kernels quantize to a format: symmetric, 4 or 8 bits, with the common scales and rules."""
    group = meta["group"] or 16
    element = meta["kind"] == "integer" and meta["min"] == -meta["max"] and meta["max"] in (7.0, 127.0)
    return (
        (element or meta["element"] in ("e2m1", "e4m3", "e5m2", "e3m0"))
        and meta["scale"] in ("fp32", "bf16", "e4m3", "e8m0")
        and meta["rule"] not in ("signed-max", "minmax")
        and meta["bits"] in (4, 8)
        and 16 <= group <= 1024
        and group & (group - 1) == 0
        and len(meta["targets"]) <= 2
    )


def encoding(meta: dict[str, Any] | None) -> dict[str, Any]:
    """The constants of ``rows.quantize_tile`` for a format, or for none."""
    if meta is None:
        meta = {"bits": 8, "kind": "", "element": "", "max": 0.0, "group": 16, "scale": "", "targets": [],
                "tensor_scale": None}  # fmt: skip
    mantissa, bias = ELEMENTS.get(meta["element"], (0, 0))
    targets = [*(meta["targets"] or [meta["max"]]), 0.0]
    above = round((meta.get("threshold", 2.0) - 1.0) * 2**23)
    return {
        "GROUP": meta["group"] or 0, "KIND": meta["kind"], "BITS": meta["bits"], "MANTISSA": mantissa, "BIAS": bias,
        "MAX": meta["max"], "SCALE": meta["scale"], "SHIFT": meta.get("shift", 0), "ABOVE": min(above, (1 << 23) - 1),
        "TARGET": targets[0], "OTHER": targets[1], "SECOND": meta["tensor_scale"] or 0.0,
        "CONSTANT": meta.get("constant", 0.0), "FUSED": not INTERPRETED,  # whose multiply-add rounds twice
        "ASM": not INTERPRETED and torch.version.hip is None,
    }  # fmt: skip


def empty_activation(x: Tensor, meta: dict[str, Any]) -> Activation:
    """Memory for ``x`` in a format."""
    size = x.shape[-1]
    count = x.numel() // max(size, 1)
    width = width_of(size, meta)
    groups = width // (meta["group"] or max(width, 1))
    second = meta["tensor_scale"] is not None or "constant" in meta
    return Activation(
        x.new_empty(count, width * meta["bits"] // 8, dtype=torch.uint8),
        x.new_empty(count, groups, dtype=_STORED.get(meta["scale"], torch.float32)),
        x.new_empty(count, dtype=torch.float32) if second else None,
        meta, tuple(x.shape), x.dtype,
    )  # fmt: skip


def width_of(size: int, meta: dict[str, Any]) -> int:
    """``size`` rounded up to whole groups, or to whole bytes."""
    unit = meta["group"] or 8 // meta["bits"]
    return -(-size // unit) * unit


def run_rows(
    form: str, x: Tensor, other: Tensor | None = None, third: Tensor | None = None, *, eps: float = 0.0,
    repeat: int = 1, activation: dict[str, Any] | None = None,
) -> Tensor | Activation:  # fmt: skip
    """``x [..., K]`` through a form of ``rows_kernel``; quantized if a format is given.

    Args:
        other: the norm's weight ``[K]``, the gate's other factor, or the shift ``[rows / repeat, K]``.
        third: the scale of a modulation, in the shape of the shift.
        repeat: how many rows in turn share a row of ``other``.
    """
    size = x.shape[-1]
    rows = x.reshape(-1, size)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    made = torch.empty_like(x, memory_format=torch.contiguous_format) if activation is None else None
    quantized = None if activation is None else empty_activation(x, activation)
    result = made if quantized is None else quantized
    if rows.numel() == 0:
        return result
    width = size if quantized is None else width_of(size, activation)
    block = min(triton.next_power_of_2(max(width, 16)), 4096)
    second = None if quantized is None else quantized.tensor_scale
    per = 64 if INTERPRETED else 1
    rows_kernel[(triton.cdiv(rows.shape[0], per),)](
        rows, rows if other is None else other, rows if third is None else third, rows if made is None else made,
        rows if quantized is None else quantized.codes, rows if quantized is None else quantized.scales,
        rows if second is None else second,
        rows.shape[0], size, width, rows.stride(0), 0 if other is None else other.stride(0) if other.ndim > 1 else 0,
        repeat, eps, FORM=form, WEIGHT=other is not None, QUANTIZE=quantized is not None, **encoding(activation),
        ROWS=per, BLOCK=block, num_warps=4 if block <= 2048 else 8, enable_fp_fusion=False,
    )  # fmt: skip
    return result
