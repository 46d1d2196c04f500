"""Codes as functions of free parameters: a weight in units of its scales, which may move to neighbouring levels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qcompile.formats.quantizer import encode, round_to
from qcompile.formats.rounding import decode_element

if TYPE_CHECKING:
    from qcompile.formats.quantizer import Quantized

__all__ = ["Latent"]

#: How far from its code's cell a weight may begin, as a part of the cell: what rounding decided stays decided.
INSIDE = 0.9


class Latent:
    """A weight whose codes can be learned: scales stay, every code moves by one level at most.

    Forward it is the format's values, to the bit; backward the identity within the reach. ``moves`` counts in gaps
    between levels where the code is, so that a wide cell of a floating-point grid is crossed as fast as a narrow one.

    Args:
        weight: the codes that were found, with groups along the last axis.
        real: the float weight that they stand for, ``[out, in]``; moves begin where it is within its code's cell.
        device: where it is computed.
    """

    def __init__(self, weight: Quantized, real: Tensor, device: torch.device) -> None:
        own = weight.to(device)
        self._weight, self._real_width = own, own.shape[-1]
        lines = own.codes.reshape(-1, own.scales.shape[-1], own.codes.shape[-1] // own.scales.shape[-1])
        scales = own.all_scales
        self._scale = scales.effective.reshape(-1, own.scales.shape[-1], 1).float()
        points = own.zero_points
        self._zero_point = None if points is None else points.reshape(-1, own.scales.shape[-1], 1)
        level = decode_element(lines, own.format.element, self._zero_point)
        padded = torch.nn.functional.pad(real.to(device).float(), (0, own.codes.shape[-1] - real.shape[-1]))
        units = padded.reshape(lines.shape) / torch.where(self._scale == 0, 1.0, self._scale)
        self._low, self._high = low, high = self._neighbours(level)
        down, up = (level - low) / 2, (high - level) / 2
        self._start = level + (units - level).maximum(-INSIDE * down).minimum(INSIDE * up)
        self._gap = torch.where(units < level, level - low, high - level)
        self._gap = torch.where(self._gap > 0, self._gap, (high - low))
        self.moves = torch.zeros_like(self._start, requires_grad=True)

    def _neighbours(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """The levels below and above, or the level itself at an end of the grid."""
        element = self._weight.format.element
        levels = torch.tensor(element.levels, dtype=torch.float32, device=level.device)
        own = level
        if self._zero_point is not None:  # then levels count from the zero point
            own = level + self._zero_point.float() * element.step
        index = torch.searchsorted(levels, own.contiguous()).clamp_max(len(levels) - 1)
        low, high = levels[(index - 1).clamp_min(0)], levels[(index + 1).clamp_max(len(levels) - 1)]
        return level + (low - levels[index]), level + (high - levels[index])

    def _units(self) -> Tensor:
        return (self._start + self.moves * self._gap).maximum(self._low).minimum(self._high)

    def values(self) -> Tensor:
        """The format's values ``[out, in]`` at the present moves, with gradients."""
        real = self._units() * self._scale
        with torch.no_grad():
            rounded = round_to(real, self._scale, self._zero_point, self._weight.format)
        return _Through.apply(real, rounded).flatten(-2)[:, : self._real_width].reshape(self._weight.shape)

    def quantized(self) -> Quantized:
        """The codes at the present moves, in RAM."""
        with torch.no_grad():
            codes = encode(self._units() * self._scale, self._scale, self._zero_point, self._weight.format)
        return replace(self._weight, codes=codes.reshape(self._weight.codes.shape)).to("cpu")

    def changed(self) -> int:
        """How many values differ from those that it began with; of a zero with a sign, the value counts."""
        return int((self.quantized().dequantize() != self._weight.to("cpu").dequantize()).sum())


class _Through(torch.autograd.Function):
    """The second of two tensors, with gradients of the first."""

    @staticmethod
    def forward(ctx: object, real: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
