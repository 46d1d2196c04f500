"""Twin-log quantization (LRQ-DiT): positive and negative weights each on a logarithmic grid of their own.

Equation 7 of arXiv:2508.03485 (section 4.1): a weight of either sign reads ``±2^(s (q + z))``, ``q = 0 … n``, where
``n = 2^(bits - 1) - 1``; each half has a scale ``s`` and an offset ``z`` of its own, and its largest values may be
clipped, by grid search (``α``, ``β``). Here the offset is the largest level ``t = 2^(s (n + z))``, stored as a float,
so that a half of equal values (``s = 0``) is no special case. The paper rounds logarithms, this format to the nearest
level. There is no zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompile.formats.format import ScaleType

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TWIN_LOG_FORMATS", "TwinLogFormat", "TwinLogQuantized", "twin_log_levels"]

_CHUNK = 1 << 16
_STEPS = (12, 16, 20, 24, 28, 32, 40, 48, 64)  # 64 s; tried beside the step that spans the whole half
_SHRINKS = (0.95, 0.9, 0.85, 0.8, 0.7)  # of the largest level


def twin_log_levels(tops: Tensor, steps: Tensor, bits: int) -> Tensor:
    """The level of every code, float32 ``[..., 2^bits]``; ``tops`` and ``steps`` are ``[..., 2]``, positive first."""
    import torch

    half = 2 ** (bits - 1)
    below = torch.arange(half - 1, -1, -1, device=tops.device, dtype=torch.float64)  # steps below the top, by code
    signs = torch.tensor([1.0, -1.0], device=tops.device, dtype=torch.float64)
    shrink = torch.exp2(steps.double().unsqueeze(-1) / -64 * below)
    return (shrink * (tops * signs).unsqueeze(-1)).float().flatten(-2)


@dataclass(frozen=True)
class TwinLogFormat:
    """Codes of a sign and ``bits - 1`` bits of a logarithm.

    Args:
        bits: of a code.
        group: values along the axis that share two tops and two steps; None for the whole axis (the paper's choice).
        scale: storage of a top; a step is a byte, in units of 1/64.
    """

    name: str
    bits: int
    group: int | None
    scale: ScaleType = ScaleType.BF16
    source: str = "LRQ-DiT, arXiv:2508.03485, section 4.1"

    def bits_per_weight(self, axis_size: int) -> float:
        """Stored bits per weight, both tops, both steps and padding included."""
        group = self.group or max(axis_size, 1)
        groups = -(-axis_size // group)
        return groups * (group * self.bits + 2 * (self.scale.bits + 8)) / max(axis_size, 1)

    def error_bound(self) -> float:
        """The largest ``|x - x̂|`` in units of the group's largest magnitude: no level of the same sign is larger."""
        return 1 + self.scale.rounding

    def quantize(self, x: Tensor, axis: int = -1) -> TwinLogQuantized:
        """Round a tensor; the axis is padded with zeros to whole groups.

        Raises:
            InputError: if ``x`` is not floating point or has no such axis.
        """
        import torch

        from qcompile.formats.rows import group_chunks, moved_last

        moved = moved_last(x, axis)
        size, lead = moved.shape[-1], moved.shape[:-1]
        group = self.group or max(size, 1)
        shape = (math.prod(lead), -(-size // group))
        codes = torch.empty(*shape, group, dtype=torch.uint8, device=x.device)
        tops = torch.empty(*shape, 2, device=x.device)
        steps = torch.empty(*shape, 2, dtype=torch.uint8, device=x.device)
        for part, rows in group_chunks(moved, group, _CHUNK):
            codes[part], tops[part], steps[part] = self._fit(rows)
        parts = (t.view(*lead, shape[1], t.shape[-1]) for t in (codes, tops, steps))
        return TwinLogQuantized(self, tuple(x.shape), axis % x.dim(), *parts)

    def _fit(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        import torch

        from qcompile.formats.scales import store_scale

        finite = rows.isfinite().all(-1, keepdim=True)
        rows = rows.nan_to_num(0, 0, 0).masked_fill(~finite, 0)
        # A power of two changes no choice, and keeps squares within the range of float32.
        exponent = torch.frexp(rows.abs().amax(-1, keepdim=True)).exponent.clamp(-126, 126)
        tops, steps = self._search(torch.ldexp(rows, -exponent))
        tops = store_scale(torch.ldexp(tops, exponent), self.scale)
        codes = _nearest(rows, twin_log_levels(tops, steps, self.bits))
        return codes, tops.masked_fill(~finite, torch.nan), steps

    def _search(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The top and the step of least squared error for the values of each sign, ``[..., 2]``."""
        import torch

        from qcompile.formats.scales import store_scale

        halves = torch.stack([rows, -rows], -2).clamp_(min=0)  # values of the other sign are zero
        top, last = halves.amax(-1), 2 ** (self.bits - 1) - 1
        least = halves.masked_fill(halves == 0, torch.inf).amin(-1)
        whole = ((top / least).clamp(min=1).log2() * (64 / last)).round().clamp(0, 255)
        step, tops = whole, store_scale(top, self.scale)
        best = _half_error(halves, tops, step, last)
        for tried in _STEPS:  # the step with the largest value kept, then how much of that is clipped
            some = torch.full_like(top, tried)
            error = _half_error(halves, tops, some, last)
            step, best = torch.where(error < best, some, step), torch.minimum(error, best)
        for shrink in _SHRINKS:
            reach = store_scale(top * shrink, self.scale)
            error = _half_error(halves, reach, step, last)
            tops, best = torch.where(error < best, reach, tops), torch.minimum(error, best)
        return tops, step.to(torch.uint8)


def _half_error(halves: Tensor, top: Tensor, step: Tensor, last: int) -> Tensor:
    """Squared error of the positive values among ``halves`` on ``top · 2^(-step · j / 64)``, ``j = 0 … last``."""
    import torch

    top, step = top.unsqueeze(-1), step.unsqueeze(-1) / -64
    index = (torch.log2(halves / top) / step).nan_to_num_(0).floor_().clamp_(0, last)
    above = top * torch.exp2(step * index)
    below = torch.where(index < last, above * torch.exp2(step), above)
    error = torch.minimum(above.sub_(halves).abs_(), below.sub_(halves).abs_())
    return error.masked_fill_(halves == 0, 0).square_().sum(-1)


def _nearest(rows: Tensor, levels: Tensor) -> Tensor:
    """The code of the nearest level; of a tie the first: positive before negative, small before large."""
    import torch

    codes, best = torch.zeros_like(rows, dtype=torch.uint8), torch.full_like(rows, torch.inf)
    for code in range(levels.shape[-1]):
        distance = (rows - levels[..., code, None]).abs_()
        codes.masked_fill_(distance < best, code)
        torch.minimum(best, distance, out=best)
    return codes


@dataclass(frozen=True)
class TwinLogQuantized:
    """A tensor in a twin-log format.

    Args:
        codes: uint8 ``[..., groups, group]``: ``q``, plus ``2^(bits - 1)`` for the negative half.
        tops: float32 values of the stored largest levels, ``[..., groups, 2]``: of positive and of negative values.
        steps: uint8 of the same shape: ``64 s``.
    """

    format: TwinLogFormat
    shape: tuple[int, ...]
    axis: int
    codes: Tensor
    tops: Tensor
    steps: Tensor

    def dequantize(self) -> Tensor:
        """The float32 values, in the original shape."""
        from qcompile.formats.rows import decode_lines

        lines = math.prod(self.codes.shape[:-2])
        codes, tops, steps = (t.view(lines, *t.shape[-2:]) for t in (self.codes, self.tops, self.steps))

        def decode(part: slice) -> Tensor:
            return twin_log_levels(tops[part], steps[part], self.format.bits).gather(-1, codes[part].long())

        return decode_lines(self.shape, self.axis, tops, decode, codes.shape[-1])


TWIN_LOG_FORMATS: dict[str, TwinLogFormat] = {
    fmt.name: fmt
    for bits in (3, 4)
    for fmt in (
        TwinLogFormat(f"twin-log{bits}-channel", bits, None, ScaleType.FP32),
        *(TwinLogFormat(f"twin-log{bits}-g{group}", bits, group) for group in (32, 64, 128)),
    )
}
