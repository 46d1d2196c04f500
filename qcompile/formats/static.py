"""Formats of activations with one scale, and one zero point, for a whole tensor: data taught these, or they are found.

Those that data taught beforehand are static; the others are found in the tensor as it comes, so that each of its values
depends on all of them (``DynamicQuantizeLinear`` of ONNX).

``x̂ = scale · (saturate(round(x / scale) + zero_point) - zero_point)``, half to even, in float32: ``QuantizeLinear`` and
``DequantizeLinear`` of ONNX, to the bit. In a format of groups the static scale is the second level, and a power of
two: then runtimes that multiply by it or divide by its reciprocal, before or after the scales of groups, agree to the
bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qcompile.formats.elements import ELEMENTS
from qcompile.formats.format import Format, ScaleRule, ScaleType

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["STATIC_FORMATS", "TENSOR_FORMATS", "Activation", "Range", "range_of", "range_within"]

#: Parts of the largest magnitude at which values are clipped, where a range is looked for in the values themselves.
_CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)

#: The smallest scale: below the normal numbers of float32 quotients would be infinite.
_TINY = float(np.finfo(np.float32).tiny)

_QUANTIZE_LINEAR = "ONNX QuantizeLinear"

STATIC_FORMATS: dict[str, Format] = {
    fmt.name: fmt
    for fmt in (
        Format("int8-static", ELEMENTS["int8-full"], None, ScaleType.FP32, static=True, source=_QUANTIZE_LINEAR),
        Format(
            "uint8-static", ELEMENTS["uint8"], None, ScaleType.FP32, ScaleRule.MINMAX, zero_point=True, static=True,
            source=_QUANTIZE_LINEAR,
        ),
        Format("fp8-e4m3-static", ELEMENTS["e4m3"], None, ScaleType.FP32, static=True, source=_QUANTIZE_LINEAR),
        Format(
            "nvfp4-static", ELEMENTS["e2m1"], 16, ScaleType.E4M3, tensor_scale=448.0, static=True,
            source="compressed-tensors, strategy tensor_group with dynamic local scales",
        ),
    )
}  # fmt: skip

TENSOR_FORMATS: dict[str, Format] = {
    **STATIC_FORMATS,
    "uint8-tensor": Format(
        "uint8-tensor", ELEMENTS["uint8"], None, ScaleType.FP32, ScaleRule.MINMAX, zero_point=True, whole=True,
        source="ONNX DynamicQuantizeLinear",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Range:
    """The scale and the zero point of a whole tensor.

    Args:
        format: a static one.
        scale: a number of float32; of a format of groups, its second level.
        zero_point: the code of zero; 0 for formats without zero points.
    """

    format: Format
    scale: float
    zero_point: int = 0

    @property
    def name(self) -> str:
        """The format with its numbers."""
        return f"{self.format.name}[{self.scale!r}, {self.zero_point}]"

    @staticmethod
    def spanning(fmt: Format, low: float, high: float) -> Range:
        """The range that holds all values between two, and zero; without a zero point it is as wide to both sides."""
        low, high = min(low, 0.0), max(high, 0.0)
        if fmt.tensor_scale is not None:
            scale = _scale(max(-low, high), fmt.element.max * fmt.tensor_scale)
            return Range(fmt, float(np.exp2(np.ceil(np.log2(scale)))))
        if not fmt.zero_point:
            return Range(fmt, _scale(max(-low, high), fmt.element.max))
        steps = len(fmt.element.levels) - 1
        scale = _scale(high - low, steps)
        return Range(fmt, scale, int(np.clip(np.round(np.float32(-low) / np.float32(scale)), 0, steps)))

    def round(self, x: Tensor) -> Tensor:
        """The values as the format holds them: float32, in the shape of ``x``; groups lie along its last axis."""
        import torch

        from qcompile.formats.quantizer import quantize, round_to

        if self.format.group is not None:
            return quantize(x.float(), self.format, tensor_scale=self.scale).dequantize()
        scale = torch.tensor(self.scale, dtype=torch.float32, device=x.device)
        zero = torch.tensor(self.zero_point, device=x.device) if self.format.zero_point else None
        return round_to(x.float(), scale, zero, self.format)


#: The way in which a site rounds its input: by a format's own rule, or in a range that is known.
Activation = Format | Range


def _scale(width: float, steps: float) -> float:
    scale = float(np.float32(width) / np.float32(steps))
    return scale if scale >= _TINY else 1.0


def range_within(x: Tensor, fmt: Format) -> Range:
    """The range that errs least on some values, among those that clip alike at both ends.

    It is the guess of predictions, which know no range yet.
    """
    if not x.numel():
        return Range.spanning(fmt, 0.0, 0.0)
    low, high = float(x.min()), float(x.max())
    found = [Range.spanning(fmt, low * clip, high * clip) for clip in _CLIPS]
    return min(found, key=lambda one: float((one.round(x) - x).square().sum()))


def range_of(x: Tensor, fmt: Format) -> Range:
    """The range of a tensor as it comes, which holds all its values that are finite, and zero."""
    finite = x if x.isfinite().all() else x.nan_to_num(0.0, 0.0, 0.0)
    low, high = finite.aminmax() if x.numel() else (0.0, 0.0)
    return Range.spanning(fmt, float(low), float(high))
