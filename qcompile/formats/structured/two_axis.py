"""Two-axis scales (SINQ): a scale for each column on top of a scalar block format along the rows.

Dividing rows and columns in turn by their standard deviations levels both (Sinkhorn's iteration); what the columns were
divided by is stored, what the rows were divided by disappears in the group scales. arXiv:2509.22944.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompile.errors import InputError
from qcompile.formats.format import Format, ScaleType
from qcompile.formats.registry import SCALAR_FORMATS

if TYPE_CHECKING:
    from torch import Tensor

    from qcompile.formats.quantizer import Quantized
    from qcompile.formats.rows import Rows

__all__ = ["TWO_AXIS_FORMATS", "TwoAxisFormat", "TwoAxisQuantized", "level_deviations"]


@dataclass(frozen=True)
class TwoAxisFormat:
    """``x ≈ inner(x / t) · t`` with one ``t`` for each position along the quantized axis.

    Args:
        inner: the scalar block format.
        iterations: rounds of the Sinkhorn iteration.
        second: storage of ``t``.
    """

    name: str
    inner: Format
    iterations: int = 16
    second: ScaleType = ScaleType.BF16
    source: str = "SINQ, arXiv:2509.22944"

    @property
    def bits(self) -> int:
        """Bits of one element code."""
        return self.inner.bits

    @property
    def group(self) -> int | None:
        """Elements that share a scale."""
        return self.inner.group

    def bits_per_weight(self, axis_size: int, rows: int = 4096) -> float:
        """Stored bits per weight; the second axis costs ``second.bits / rows``."""
        return self.inner.bits_per_weight(axis_size) + self.second.bits / max(rows, 1)

    def error_bound(self) -> float:
        """The largest ``|x - x̂|`` of any value, in units of its effective scale times ``t``."""
        return self.inner.error_bound()

    def quantize(self, x: Tensor, axis: int = -1) -> TwoAxisQuantized:
        """Level, then quantize, some lines at a time.

        Raises:
            InputError: for a tensor without a second axis, or as for scalar formats.
        """
        from qcompile.formats.quantizer import quantize_rows
        from qcompile.formats.rows import Rows, moved_last
        from qcompile.formats.scales import store_scale

        if x.dim() < 2:
            raise InputError(f"{self.name} needs two axes to scale, the tensor has {x.dim()}")
        second = store_scale(level_deviations(moved_last(x, axis), self.iterations), self.second)
        view = Rows.of(x, self.inner, axis, second)
        inner = quantize_rows(view, tuple(x.shape), self.inner, _tensor_scale(view, self.inner))
        return TwoAxisQuantized(self, inner, second)


def _tensor_scale(view: Rows, inner: Format) -> Tensor | None:
    """The second-level scale of the leveled tensor, which is never whole in memory."""
    import torch

    from qcompile.formats.tensor_scale import default_tensor_scale, finite_amax

    amax = torch.zeros(1, device=view.x.device)
    for _, groups in view.chunks() if inner.tensor_scale else ():
        amax = torch.maximum(amax, finite_amax(groups))
    return default_tensor_scale(amax, inner)


def _parts(moved: Tensor) -> list[slice]:
    """Lines along the last axis in pieces that fit the cache."""
    from qcompile.formats.rows import CHUNK

    lines, step = math.prod(moved.shape[:-1]), max(1, CHUNK // max(moved.shape[-1], 1))
    return [slice(start, min(start + step, lines)) for start in range(0, lines, step)]


def level_deviations(x: Tensor, iterations: int) -> Tensor:
    """Divisors of the columns of ``[..., columns]`` that give both axes level standard deviations.

    Of all iterates the one with the least imbalance counts (the ratio of the largest to the smallest deviation, over
    both axes); broken or constant columns keep a scale of one.
    """
    import torch

    lines, size = math.prod(x.shape[:-1]), x.shape[-1]
    column, row = torch.ones(size, device=x.device), torch.ones(lines, device=x.device)
    if not x.numel():
        return column
    best, least, unit = column, float("inf"), _unit(x)
    rows = _row_moments(x, column, unit)
    for _ in range(iterations):
        columns = _column_moments(x, row, unit) / column
        imbalance = _ratio(columns) * _ratio(rows / row)
        if imbalance < least:
            best, least = column, imbalance
        column = torch.where(columns > 0, column * columns, column)
        rows = _row_moments(x, column, unit)
        row = torch.where(rows > 0, rows, row)
    return best / best.log().mean().exp()


def _unit(x: Tensor) -> Tensor | None:
    """A divisor with which squares fit float32; None where they do as they are, and all values are finite."""
    from qcompile.formats.tensor_scale import finite_amax

    amax = finite_amax(x)
    return None if x.sum().isfinite() and 1e-15 < amax < 1e15 else amax.clamp(min=1e-38)


def _squares(x: Tensor, unit: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Squares in that unit, a few lines at a time; values that are not finite count as zero."""
    from qcompile.formats.rows import line_slice

    for part in _parts(x):
        values = line_slice(x, part).float()
        yield part, values.square() if unit is None else values.nan_to_num(0, 0, 0).div_(unit).square_()


def _row_moments(x: Tensor, column: Tensor, unit: Tensor | None) -> Tensor:
    """Root mean square of each line after its columns are divided by ``column``."""
    weight, total = column.square().reciprocal_(), column.new_empty(math.prod(x.shape[:-1]))
    for part, square in _squares(x, unit):
        total[part] = square @ weight
    return total.div_(len(column)).sqrt_()


def _column_moments(x: Tensor, row: Tensor, unit: Tensor | None) -> Tensor:
    """Root mean square of each column after the lines are divided by ``row``."""
    weight, total = row.square().reciprocal_(), row.new_zeros(x.shape[-1])
    for part, square in _squares(x, unit):
        total += weight[part] @ square
    return total.div_(len(row)).sqrt_()


def _ratio(deviations: Tensor) -> float:
    used = deviations[deviations > 0]
    return float(used.max() / used.min()) if used.numel() else 1.0


@dataclass(frozen=True)
class TwoAxisQuantized:
    """A tensor with two-axis scales: the inner tensor, and ``second [size of the axis]``."""

    format: TwoAxisFormat
    inner: Quantized
    second: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the original tensor."""
        return self.inner.shape

    @property
    def axis(self) -> int:
        """The axis along which groups run."""
        return self.inner.axis

    def dequantize(self) -> Tensor:
        """The float32 values, in the original shape."""
        out = self.inner.dequantize()
        out.movedim(self.axis, -1).mul_(self.second)
        return out


TWO_AXIS_FORMATS: dict[str, TwoAxisFormat] = {
    f"sinq-{name}": TwoAxisFormat(f"sinq-{name}", SCALAR_FORMATS[name])
    for name in ("int2-g64", "int3-g64", "int4-g64", "uint3-g64", "uint4-g64", "nf4-g64", "mxfp4", "nvfp4")
}
