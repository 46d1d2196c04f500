"""Quantized layers as compressed-tensors stores them: the tensors of one, and what the configuration says of it.

The layout is that of its classes ``PackedQuantizationCompressor``, ``NVFP4PackedCompressor`` and
``MXFP4PackedCompressor``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from qcompile.errors import TargetError
from qcompile.formats import Format, Quantized
from qcompile.formats.format import Kind, ScaleType
from qcompile.formats.layouts import to_block_scaled
from qcompile.formats.packing import pack_codes
from qcompile.targets.plans import Plan
from qcompile.targets.scheme import Scheme

__all__ = ["INTEGERS", "MXFP4", "NVFP4", "input_arguments", "layer_tensors", "layout_of", "weight_arguments"]

INTEGERS, NVFP4, MXFP4 = "pack-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized"


def layout_of(fmt: Format) -> str:
    """The name of the layout that stores a format.

    Raises:
        TargetError: if none does.
    """
    if fmt.element.kind is Kind.INTEGER and fmt.group is not None:
        return INTEGERS
    if fmt.element.name == "e2m1" and fmt.scale is ScaleType.E8M0:
        return MXFP4
    if fmt.element.name == "e2m1" and fmt.scale is ScaleType.E4M3 and fmt.tensor_scale is not None:
        return NVFP4
    raise TargetError(f"compressed-tensors has no layout for {fmt.name}")


def weight_arguments(fmt: Format) -> dict[str, Any]:
    """The ``weights`` of a group of layers in ``quantization_config``."""
    layout = layout_of(fmt)
    integers = layout == INTEGERS
    common = {
        "num_bits": fmt.bits,
        "type": "int" if integers else "float",
        "strategy": "tensor_group" if layout == NVFP4 else "group",
        "group_size": fmt.group,
        "symmetric": not fmt.zero_point,
        "dynamic": False,
    }
    if fmt.zero_point:
        common["zp_dtype"] = "torch.int8"
    if not integers:
        common["scale_dtype"] = "torch.float8_e4m3fn" if layout == NVFP4 else "torch.uint8"
    return common


def input_arguments(scheme: Scheme) -> dict[str, Any] | None:
    """The ``input_activations`` of a group of layers; ``None`` where inputs stay as they are.

    Scales of groups follow from the values as they come (``dynamic``), below a static second level for NVFP4
    (``local``).
    """
    if scheme.activation is None:
        return None
    return {**weight_arguments(scheme.activation), "dynamic": "local" if scheme.static else True}


def layer_tensors(plan: Plan, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a weight ``[out, in]`` and of its input, by the last part of their names.

    Args:
        plan: its weight is quantized along ``in``, in whole groups.
        dtype: of scales that are stored as floats.

    Raises:
        TargetError: if the groups do not fill the weight, or nothing stores the format.
    """
    q, fmt = plan.weight, plan.weight.format
    layout, group = layout_of(fmt), fmt.group or 1
    if q.shape[1] % group:
        raise TargetError(
            f"compressed-tensors stores whole groups, and {q.shape[1]} features are no multiple of {group}: choose a "
            "format with smaller groups, or leave the layer out with --exclude"
        )
    if layout == INTEGERS:
        return _integers(q, dtype)
    packed = to_block_scaled(q)
    if layout == MXFP4:
        return {"weight_packed": packed.codes, "weight_scale": packed.scales}
    assert packed.tensor_scale is not None
    within = {} if plan.range is None else {"input_global_scale": torch.tensor([1 / plan.range.scale])}
    return within | {
        "weight_packed": packed.codes,
        "weight_scale": packed.scales.view(torch.float8_e4m3fn),
        "weight_global_scale": packed.tensor_scale.reciprocal().reshape(1),
    }


def _integers(q: Quantized, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Unsigned codes as one stream of bits a row, in words of 32 bits; zero points run down the columns."""
    bits = q.format.bits
    codes = q.codes if q.format.zero_point else q.codes ^ (1 << (bits - 1))  # two's complement to offset binary
    scales = (q.all_scales.effective * q.format.element.step).to(dtype)
    found = {"weight_packed": _words(codes, bits), "weight_scale": scales}
    if q.zero_points is not None:
        found["weight_zero_point"] = _words(q.zero_points.T, bits).T.contiguous()
    return {**found, "weight_shape": torch.tensor(q.shape)}


def _words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    packed = pack_codes(codes.contiguous(), bits)
    padded = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % 4)).numpy()
    words = np.frombuffer(padded.tobytes(), np.int32).reshape(*padded.shape[:-1], -1)
    return torch.from_numpy(words.copy())
