"""Two-axis scales (SINQ): a scale for each column on top of a scalar block format along the rows.

Dividing rows and columns in turn by their standard deviations levels both (Sinkhorn's iteration); what the columns were
divided by is stored, what the rows were divided by disappears in the group scales. arXiv:2509.22944.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompile.errors import InputError
from qcompile.formats.format import Format, ScaleType
from qcompile.formats.registry import SCALAR_FORMATS

if TYPE_CHECKING:
    from torch import Tensor

    from qcompile.formats.quantizer import Quantized

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

    def quantize(self, x: Tensor, axis: int = -1) -> TwoAxisQuantized:
        """Level, then quantize.

        Raises:
            InputError: for a tensor without a second axis.
        """
        from qcompile.formats.quantizer import quantize
        from qcompile.formats.scales import store_scale

        if x.dim() < 2:
            raise InputError(f"{self.name} needs two axes to scale, the tensor has {x.dim()}")
        moved = x.movedim(axis, -1).float()
        second = store_scale(level_deviations(moved.flatten(0, -2), self.iterations), self.second)
        inner = quantize((moved / second).movedim(-1, axis), self.inner, axis)
        return TwoAxisQuantized(self, inner, second)


def level_deviations(x: Tensor, iterations: int) -> Tensor:
    """What to divide the columns of ``[rows, columns]`` by, so that both axes have level standard deviations.

    Of all iterates the one with the least imbalance counts (the ratio of the largest to the smallest deviation, over
    both axes); broken or constant columns keep a scale of one.
    """
    import torch

    finite = x.nan_to_num(0, 0, 0)
    square = finite.square()
    column = torch.ones(x.shape[1], device=x.device)
    row = torch.ones(x.shape[0], device=x.device)
    best, least = column, float("inf")
    for _ in range(iterations if x.numel() else 0):
        columns = (square.t() @ row.square().reciprocal()).div_(len(row)).sqrt_() / column
        rows = (square @ column.square().reciprocal()).div_(len(column)).sqrt_() / row
        imbalance = _ratio(columns) * _ratio(rows)
        if imbalance < least:
            best, least = column, imbalance
        column = torch.where(columns > 0, column * columns, column)
        rows = (square @ column.square().reciprocal()).div_(len(column)).sqrt_()
        row = torch.where(rows > 0, rows, row)
    return best / best.log().mean().exp()


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
        return (self.inner.dequantize().movedim(self.axis, -1) * self.second).movedim(-1, self.axis)


TWO_AXIS_FORMATS: dict[str, TwoAxisFormat] = {
    f"sinq-{name}": TwoAxisFormat(f"sinq-{name}", SCALAR_FORMATS[name])
    for name in ("int2-g64", "int3-g64", "int4-g64", "uint3-g64", "uint4-g64", "nf4-g64", "mxfp4", "nvfp4")
}
