"""Codes and scales as functions of free parameters: a weight in units of its scales, which may move to a next level."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qcompile.formats.format import ScaleType
from qcompile.formats.quantizer import encode, round_to
from qcompile.formats.rounding import decode_element
from qcompile.formats.scales import store_scale

if TYPE_CHECKING:
    from qcompile.formats.quantizer import Quantized

__all__ = ["Latent"]

#: How far from its code's cell a weight may begin, as a part of the cell: what rounding decided stays decided.
INSIDE = 0.9

#: Scales that have neighbours near enough for a gradient to mean them: powers of two have not.
_FINE = (ScaleType.FP32, ScaleType.FP16, ScaleType.BF16, ScaleType.E4M3, ScaleType.UE5M3)


class Latent:
    """A weight whose codes and scales can be learned: every code moves by one level at most.

    Forward it is the format's values, to the bit; backward rounding is the identity, within that reach.
    ``moves`` counts in gaps between levels where the code begins, so that a wide cell of a floating-point grid is
    crossed as fast as a narrow one; ``stretch`` is the logarithm of a scale's factor, before it is stored.

    Args:
        weight: the codes that were found, with groups along the last axis.
        real: the float weight that they stand for, ``[out, in]``; moves begin where it is within its code's cell.
        device: where it is computed.
    """

    def __init__(self, weight: Quantized, real: Tensor, device: torch.device) -> None:
        own = weight.to(device)
        self._weight, self._real_width = own, own.shape[-1]
        groups, fmt = own.scales.shape[-1], own.format
        lines = own.codes.reshape(-1, groups, own.codes.shape[-1] // groups)
        self._stored = own.scales.reshape(-1, groups, 1).float()
        points = own.zero_points
        self._zero_point = None if points is None else points.reshape(-1, groups, 1)
        level = decode_element(lines, fmt.element, self._zero_point)
        scale = self._effective(self._stored)
        padded = torch.nn.functional.pad(real.to(device).float(), (0, own.codes.shape[-1] - real.shape[-1]))
        units = padded.reshape(lines.shape) / torch.where(scale == 0, 1.0, scale)
        self._low, self._high = low, high = self._neighbours(level)
        down, up = (level - low) / 2, (high - level) / 2
        self._start = level + (units - level).maximum(-INSIDE * down).minimum(INSIDE * up)
        self._gap = torch.where(units < level, level - low, high - level)
        self._gap = torch.where(self._gap > 0, self._gap, (high - low)).masked_fill(scale == 0, 0)
        self.moves = torch.zeros_like(self._start, requires_grad=True)
        free = fmt.scale in _FINE and fmt.rows == 1
        self.stretch = torch.zeros_like(self._stored, requires_grad=True) if free else None

    def _effective(self, stored: Tensor) -> Tensor:
        second = self._weight.tensor_scale
        return stored if second is None else stored * second

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
        """The weight in units of its scales."""
        return (self._start + self.moves * self._gap).maximum(self._low).minimum(self._high)

    def _scales(self) -> Tensor:
        """The stored scales ``[rows, groups, 1]``, with gradients."""
        if self.stretch is None:
            return self._stored
        wanted = self._stored * self.stretch.exp()
        with torch.no_grad():
            stored = store_scale(wanted.clone(), self._weight.format.scale)
        return _Through.apply(wanted, stored)

    def values(self) -> Tensor:
        """The format's values ``[out, in]`` at the present parameters, with gradients."""
        units, fmt = self._units(), self._weight.format
        with torch.no_grad():
            levels = round_to(units, torch.ones_like(self._stored), self._zero_point, fmt)
        real = _Through.apply(units, levels) * self._effective(self._scales())
        return real.flatten(-2)[:, : self._real_width].reshape(self._weight.shape)

    def quantized(self) -> Quantized:
        """Codes and scales at the present parameters, in RAM."""
        own = self._weight
        with torch.no_grad():
            scales = self._scales()
            empty = self._effective(scales) == 0
            codes = encode(self._units(), torch.where(empty, 0.0, 1.0), self._zero_point, own.format)
        return replace(own, codes=codes.reshape(own.codes.shape), scales=scales.reshape(own.scales.shape)).to("cpu")

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
