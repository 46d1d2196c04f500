"""Trit-planes: a weight as the sum of a few ternary planes, each with its own scale per group (PTQTP).

``x ≈ Σ_k α_k · t_k``, ``t_k ∈ {-1, 0, 1}``. The scales and the trits improve in turn: least squares for the scales of a
group (a 2x2 system), then the nearest of the nine sums for each value. PTQTP, arXiv:2509.16989, algorithm 1, equations
3 to 10. It starts from both planes equal to the signs, where its ridge makes both scales half the mean magnitude; two
other starts are tried beside that one. Where the system is singular the solution of least norm takes the ridge's place.
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
_CONVERGED = 1e-4  # of the binade of a group's largest magnitude
# Sparse sums first, the second plane before the first: so a tie leaves equal scales as the second plane's.
_TRITS = ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))


@dataclass(frozen=True)
class PlaneFormat:
    """Two trit-planes with two scales per group.

    Args:
        group: values along the axis that share the scales; None for the whole axis.
        iterations: rounds of alternation at most (the paper reports convergence within 50).
        scale: storage of each scale.
    """

    name: str
    group: int | None = 128
    iterations: int = 50
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

        from qcompile.formats.rows import group_chunks, moved_last

        moved = moved_last(x, axis)
        size, lead = moved.shape[-1], moved.shape[:-1]
        group = self.group or max(size, 1)
        groups = -(-size // group)
        codes = torch.empty(math.prod(lead), groups, group, dtype=torch.uint8, device=x.device)
        scales = torch.empty(math.prod(lead), groups, 2, device=x.device)
        for part, rows in group_chunks(moved, group, _CHUNK):
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
        # The paper's start, then evenly spaced sums 0, ±a/4 … ±a reaching the bulk of a bell or the largest value.
        mean, top = rows.abs().mean(-1, keepdim=True), rows.abs().amax(-1, keepdim=True)
        even = rows.new_tensor([0.75, 0.25])
        codes, scales, error = self._alternate(rows, mean.expand(*mean.shape[:-1], 2) / 2)
        for start in (2.5 * mean * even, top * even):
            other, others, other_error = self._alternate(rows, start)
            better = (other_error < error).unsqueeze(-1)
            codes, scales = torch.where(better, other, codes), torch.where(better, others, scales)
            error = torch.minimum(error, other_error)
        return codes, torch.ldexp(scales, exponent).masked_fill(~finite, torch.nan)

    def _alternate(self, rows: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        import torch

        from qcompile.formats.scales import store_scale

        scales = scales.clone()
        moving = torch.ones(scales.shape[:-1], dtype=torch.bool, device=rows.device)  # groups that still change
        for _ in range(self.iterations):
            some, before = rows[moving], scales[moving]
            after = _least_squares(some, _nearest(some, before), before)
            scales[moving] = after
            moving[moving.clone()] = (after - before).abs().amax(-1) > _CONVERGED
            if not moving.any():
                break
        scales = store_scale(scales, self.scale)
        codes = _nearest(rows, scales)
        return codes, scales, (_values(codes, scales) - rows).square_().sum(-1)


def _nearest(rows: Tensor, scales: Tensor) -> Tensor:
    """The nearest of the nine sums for each value, as uint8 ``3 · (t₁ + 1) + t₂ + 1``; of a tie the first."""
    import torch

    best = torch.full_like(rows, torch.inf)
    codes = torch.zeros_like(rows, dtype=torch.uint8)
    for first, second in _TRITS:
        distance = (rows - (first * scales[..., :1] + second * scales[..., 1:])).abs_()
        codes.masked_fill_(distance < best, 3 * (first + 1) + second + 1)
        torch.minimum(best, distance, out=best)
    return codes


def _planes(codes: Tensor) -> tuple[Tensor, Tensor]:
    return (codes // 3).float() - 1, (codes % 3).float() - 1


def _values(codes: Tensor, scales: Tensor) -> Tensor:
    first, second = _planes(codes)
    return first * scales[..., :1] + second * scales[..., 1:]


def _least_squares(rows: Tensor, codes: Tensor, before: Tensor) -> Tensor:
    """The scales of least error for given trits, of equal planes the smallest; an empty plane keeps its scale."""
    import torch

    first, second = _planes(codes)
    products = (first * first, first * second, second * second, first * rows, second * rows)
    a, b, c, u, v = (product.sum(-1).double() for product in products)
    determinant, trace = a * c - b * b, a + c  # integers, exact in float64
    regular = torch.stack([u * c - v * b, v * a - u * b], -1) / determinant.clamp(min=1).unsqueeze(-1)
    singular = torch.stack([a * u + b * v, b * u + c * v], -1) / trace.square().clamp(min=1).unsqueeze(-1)
    solved = torch.where((determinant > 0).unsqueeze(-1), regular, singular)
    return torch.where(torch.stack([a, c], -1) > 0, solved.float(), before)


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
