"""Trit-planes: a weight as the sum of a few ternary planes, each with its own scale per group (PTQTP).

``x ≈ Σ_k α_k · t_k``, ``t_k ∈ {-1, 0, 1}``. The scales and the trits improve in turn: least squares for the scales of a
group (a 2x2 system, with a ridge where it is singular), then the nearest of the nine sums for each value.
PTQTP, arXiv:2509.16989.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompile.formats.format import ScaleType

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PLANE_FORMATS", "PlaneFormat", "PlaneQuantized"]

_CHUNK = 1 << 16
_TRITS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0), (0, 1), (1, -1), (1, 0), (1, 1))


@dataclass(frozen=True)
class PlaneFormat:
    """Two trit-planes with two scales per group.

    Args:
        group: values along the axis that share the scales; None for the whole axis.
        iterations: rounds of alternation.
        scale: storage of each scale.
    """

    name: str
    group: int | None = 128
    iterations: int = 12
    scale: ScaleType = ScaleType.BF16
    source: str = "PTQTP, arXiv:2509.16989"

    @property
    def bits(self) -> float:
        """Bits of a value's two trits: five trits fit a byte."""
        return 2 * 8 / 5

    def bits_per_weight(self, axis_size: int) -> float:
        """Stored bits per weight, both scales and padding included."""
        group = self.group or max(axis_size, 1)
        groups = -(-axis_size // group)
        return groups * (group * self.bits + 2 * self.scale.bits) / max(axis_size, 1)

    def error_bound(self) -> float:
        """The largest ``|x - x̂|`` in units of the group's largest magnitude: zero is a sum, so no value overshoots."""
        return 1.0

    def quantize(self, x: Tensor, axis: int = -1) -> PlaneQuantized:
        """Round a tensor; the axis is padded with zeros to whole groups.

        Raises:
            InputError: if ``x`` is not floating point or has no such axis.
        """
        import torch

        from qcompile.formats.rows import line_slice, moved_last

        moved = moved_last(x, axis)
        size, lead = moved.shape[-1], moved.shape[:-1]
        group = self.group or max(size, 1)
        groups = -(-size // group)
        codes = torch.empty(math.prod(lead), groups, group, dtype=torch.uint8, device=x.device)
        scales = torch.empty(math.prod(lead), groups, 2, device=x.device)
        step = max(1, _CHUNK // max(groups * group, 1))
        for start in range(0, len(codes) if codes.numel() else 0, step):
            part = slice(start, start + step)
            rows = line_slice(moved, part).float()
            rows = torch.nn.functional.pad(rows, (0, groups * group - size)).view(-1, groups, group)
            codes[part], scales[part] = self._fit(rows)
        return PlaneQuantized(
            self, tuple(x.shape), axis % x.dim(), codes.view(*lead, groups, group), scales.view(*lead, groups, 2)
        )

    def _fit(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        finite = rows.isfinite().all(-1, keepdim=True)
        rows = rows.nan_to_num(0, 0, 0).masked_fill(~finite, 0)
        # Values between 1/2 and 1, so that no square leaves the range of float32; a power of two changes nothing else.
        exponent = torch.frexp(rows.abs().amax(-1, keepdim=True)).exponent.clamp(-126, 126)
        rows = torch.ldexp(rows, -exponent)
        # Evenly spaced sums 0, ±a/4 … ±a, reaching either the bulk of a bell or the largest value.
        top = torch.stack([rows.abs().mean(-1) * 2.5, rows.abs().amax(-1)])
        fits = [self._alternate(rows, reach.unsqueeze(-1) * rows.new_tensor([0.75, 0.25])) for reach in top]
        (codes, scales, error), (other, others, other_error) = fits
        better = (other_error < error).unsqueeze(-1)
        scales = torch.ldexp(torch.where(better, others, scales), exponent)
        return torch.where(better, other, codes), scales.masked_fill(~finite, torch.nan)

    def _alternate(self, rows: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from qcompile.formats.scales import store_scale

        for _ in range(self.iterations):
            scales = _least_squares(rows, _nearest(rows, scales), scales)
        scales = store_scale(scales, self.scale)
        codes = _nearest(rows, scales)
        return codes, scales, (_values(codes, scales) - rows).square_().sum(-1)


def _nearest(rows: Tensor, scales: Tensor) -> Tensor:
    """The best of the nine sums for each value, as uint8 ``3 · (t₁ + 1) + t₂ + 1``; the first of a tie."""
    import torch

    best = torch.full_like(rows, torch.inf)
    codes = torch.zeros_like(rows, dtype=torch.uint8)
    for code, (first, second) in enumerate(_TRITS):
        distance = (rows - (first * scales[..., :1] + second * scales[..., 1:])).abs_()
        codes.masked_fill_(distance < best, code)
        torch.minimum(best, distance, out=best)
    return codes


def _planes(codes: Tensor) -> tuple[Tensor, Tensor]:
    return (codes // 3).float() - 1, (codes % 3).float() - 1


def _values(codes: Tensor, scales: Tensor) -> Tensor:
    first, second = _planes(codes)
    return first * scales[..., :1] + second * scales[..., 1:]


def _least_squares(rows: Tensor, codes: Tensor, before: Tensor) -> Tensor:
    import torch

    first, second = _planes(codes)
    a, b, c = first.square().sum(-1), (first * second).sum(-1), second.square().sum(-1)
    u, v = (first * rows).sum(-1), (second * rows).sum(-1)
    determinant = a * c - b * b
    solved = torch.stack([(u * c - v * b), (v * a - u * b)], -1) / determinant.clamp(min=1).unsqueeze(-1)
    return torch.where((determinant > 0).unsqueeze(-1), solved, before)


@dataclass(frozen=True)
class PlaneQuantized:
    """A tensor as two trit-planes.

    Args:
        codes: uint8 ``[..., groups, group]``: ``3 · (t₁ + 1) + t₂ + 1``.
        scales: float32 values of the stored scales, ``[..., groups, 2]``.
    """

    format: PlaneFormat
    shape: tuple[int, ...]
    axis: int
    codes: Tensor
    scales: Tensor

    def dequantize(self) -> Tensor:
        """The float32 values, in the original shape."""
        from qcompile.formats.rows import decode_lines

        lines = math.prod(self.codes.shape[:-2])
        codes, scales = (t.view(lines, *t.shape[-2:]) for t in (self.codes, self.scales))
        return decode_lines(
            self.shape, self.axis, scales, lambda part: _values(codes[part], scales[part]), codes.shape[-1]
        )


PLANE_FORMATS: dict[str, PlaneFormat] = {
    fmt.name: fmt
    for fmt in (PlaneFormat("ptqtp-g128"), PlaneFormat("ptqtp-g64", 64), PlaneFormat("ptqtp-channel", None))
}
