"""Vector formats: several weights become one code of a grid that is optimal for normally distributed values.

A group is divided by its root mean square and each run of ``dimension`` values is rounded to the nearest point of the
grid. HIGGS (arXiv:2411.17525) and QuIP# apply a Hadamard transform first, which here is a transform of its own;
TurboQuant (arXiv:2504.19874) and EDEN (arXiv:2108.08842) rotate each vector themselves, which ``rotated`` asks for.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from qcompile.errors import InputError
from qcompile.formats.format import Format, ScaleType
from qcompile.formats.grids.vectors import grid_tensor, higgs_grid

if TYPE_CHECKING:
    from torch import Tensor

    from qcompile.formats.quantizer import Quantized
    from qcompile.transforms import Transform

__all__ = ["Correction", "VECTOR_FORMATS", "VectorFormat", "VectorQuantized"]

_CHUNK = 1 << 16


class Correction(enum.Enum):
    """How the stored scale makes up for what rounding to a grid does to a vector's length."""

    NONE = "none"  # the root mean square as it is (TurboQuant-mse, HIGGS)
    LEAST_SQUARES = "least-squares"  # <x, c> / <c, c>: the least error (EDEN, biased)
    UNBIASED = "unbiased"  # <x, x> / <x, c>: the right inner product on average (EDEN, DRIVE)


@dataclass(frozen=True)
class VectorFormat:
    """Groups along an axis, scaled to unit variance, in runs of ``dimension`` values to a code.

    Args:
        dimension: values a code.
        code_bits: bits of a code.
        group: values that share a scale; None for the whole axis.
        scale: storage of the scale.
        lattice: "grid" for a table of points, "e8p" for QuIP#'s.
        stretch: values are divided by this before rounding (E8P's is 1/1.03, its best for normal values).
        correction: what the scale is.
        rotated: whether each group goes through a seeded randomized Hadamard transform (a dense rotation where there
            is none of that order).
    """

    name: str
    dimension: int
    code_bits: int
    group: int | None = 1024
    scale: ScaleType = ScaleType.BF16
    lattice: str = "grid"
    stretch: float = 1.0
    correction: Correction = Correction.NONE
    rotated: bool = False
    source: str = ""

    @property
    def bits(self) -> float:
        """Bits of a code, per value."""
        return self.code_bits / self.dimension

    def bits_per_weight(self, axis_size: int) -> float:
        """Stored bits per weight, scale and padding included."""
        group = self._group(axis_size)
        groups = -(-axis_size // group)
        return groups * (group * self.bits + self.scale.bits) / max(axis_size, 1)

    def codes_per_group(self, axis_size: int) -> int:
        """Codes of a group on an axis of ``axis_size``."""
        return self._group(axis_size) // self.dimension

    def error_bound(self, axis_size: int | None = None) -> float:
        """The largest ``|x - x̂|`` of any value, in units of its group's root mean square; see ``vector_bounds``.

        Raises:
            InputError: if the group is the whole axis and its size is not given.
        """
        from qcompile.formats.structured.vector_bounds import e8p_reach, grid_reach, rotated_bound

        if axis_size is None and self.group is None:
            raise InputError(f"{self.name} has one scale for the whole axis: give its size")
        group = self._group(axis_size or self.group or 1)
        radius = math.sqrt(group) / self.stretch
        if self.lattice == "e8p":
            return self.stretch * (e8p_reach(radius) + self.scale.rounding * 2.75)  # 5/2 + 1/4 is its largest value
        grid = higgs_grid(self.dimension, 2**self.code_bits)
        top = max(map(math.hypot, *zip(*grid, strict=True)))
        if not self.rotated:
            return grid_reach(grid, radius) + self.scale.rounding * top
        levels = tuple(point[0] for point in grid)
        error = rotated_bound(levels, group, self.correction is Correction.UNBIASED)
        return error + self.scale.rounding * (error + math.sqrt(group) * max(top, 1))

    def _group(self, axis_size: int) -> int:
        group = min(self.group or axis_size, axis_size) or 1  # a short axis is one group
        return -(-group // self.dimension) * self.dimension

    def quantize(self, x: Tensor, axis: int = -1, seed: int = 0) -> VectorQuantized:
        """Round a tensor; the axis is padded with zeros to whole groups.

        Raises:
            InputError: if ``x`` is not floating point.
        """
        import torch

        from qcompile.formats.rows import group_chunks, moved_last

        moved = moved_last(x, axis)
        size, lead = moved.shape[-1], moved.shape[:-1]
        group = self._group(size)
        groups = -(-size // group)
        codes = torch.empty(math.prod(lead), groups, group // self.dimension, dtype=torch.int32, device=x.device)
        scales = torch.empty(math.prod(lead), groups, device=x.device)
        counts = (size - torch.arange(groups, device=x.device) * group).clamp(max=group)
        for part, rows in group_chunks(moved, group, _CHUNK):
            codes[part], scales[part] = self._encode(rows, counts, seed)
        shape = (*lead, groups)
        codes = codes.view(*shape, group // self.dimension)
        return VectorQuantized(self, tuple(x.shape), axis % x.dim(), codes, scales.view(shape), seed)

    def _encode(self, rows: Tensor, counts: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Codes and stored scales of ``[rows, groups, group]``; a group with NaN or infinity has a NaN scale.

        ``counts [groups]`` is how many values of each group are no padding.
        """
        import torch

        from qcompile.formats.scales import divisor, store_scale

        rms = _root_mean_square(rows, counts)
        unit = (rows / divisor(rms).unsqueeze(-1)).nan_to_num_(0, 0, 0)
        if self.rotated:
            unit = _rotation(unit.shape[-1], seed).apply(unit)
        scaled = unit if self.stretch == 1 else unit / self.stretch
        codes = self._nearest(scaled.reshape(-1, self.dimension)).view(*rows.shape[:2], -1)
        scale = rms
        if self.correction is not Correction.NONE:
            scale = rms * _corrected(unit, self._points(codes), self.correction)
        scale = store_scale(scale, self.scale).masked_fill(~rms.isfinite(), torch.nan)
        return codes, scale

    def _nearest(self, unit: Tensor) -> Tensor:
        if self.lattice == "e8p":
            from qcompile.formats.grids.e8p import encode_e8p

            return encode_e8p(unit)
        grid = grid_tensor(self.dimension, 2**self.code_bits, unit.device)
        if self.dimension == 1:
            return _nearest_level(unit[:, 0], grid[:, 0])
        import torch

        half, codes = grid.square().sum(1) / -2, torch.empty(len(unit), dtype=torch.int32, device=unit.device)
        step = _CHUNK * 4 // len(grid)  # scores that fit the cache
        for start in range(0, len(unit), step):
            part = slice(start, start + step)
            codes[part] = torch.addmm(half, unit[part], grid.t()).argmax(1)
        return codes

    def _points(self, codes: Tensor) -> Tensor:
        """The values of codes ``[..., n]`` on the grid, ``[..., n · dimension]``, unit variance."""
        if self.lattice == "e8p":
            from qcompile.formats.grids.e8p import decode_e8p

            points = decode_e8p(codes.flatten())
        else:
            points = grid_tensor(self.dimension, 2**self.code_bits, codes.device)[codes.flatten()]
        return (points * self.stretch).view(*codes.shape[:-1], codes.shape[-1] * self.dimension)


@dataclass(frozen=True)
class VectorQuantized:
    """A tensor in a vector format.

    Args:
        codes: int32 ``[..., groups, group / dimension]``, with the quantized axis moved last.
        scales: float32 values of the stored scales, ``[..., groups]``.
        seed: of the rotation, if the format has one.
    """

    format: VectorFormat
    shape: tuple[int, ...]
    axis: int
    codes: Tensor
    scales: Tensor
    seed: int = 0

    def dequantize(self) -> Tensor:
        """The float32 values, in the original shape."""
        from qcompile.formats.rows import decode_lines

        lines = math.prod(self.codes.shape[:-2])
        codes = self.codes.view(lines, *self.codes.shape[-2:])
        scales = self.scales.view(lines, self.scales.shape[-1])
        group = codes.shape[-1] * self.format.dimension

        def decode(part: slice) -> Tensor:
            values = self.format._points(codes[part])
            if self.format.rotated:
                values = _rotation(group, self.seed).inverse().apply(values)
            return values * scales[part].unsqueeze(-1)

        return decode_lines(self.shape, self.axis, scales, decode, group)

    def as_table(self) -> Quantized:
        """The same values in a block format of table levels: of one value a code, on a grid, not rotated.

        Raises:
            InputError: for other formats.
        """
        import torch

        from qcompile.formats.elements import table_element
        from qcompile.formats.quantizer import Quantized

        fmt = self.format
        if fmt.dimension != 1 or fmt.lattice != "grid" or fmt.rotated:
            raise InputError(f"no target runs '{fmt.name}': its codes are not levels of single values")
        levels = [level * fmt.stretch for (level,) in higgs_grid(1, 2**fmt.code_bits)]
        group = None if self.scales.shape[-1] == 1 else self.codes.shape[-1]
        scalar = Format(fmt.name, table_element(fmt.name, levels), group, fmt.scale)
        return Quantized(scalar, self.shape, self.axis, self.codes.flatten(-2).to(torch.uint8), self.scales)


def _root_mean_square(rows: Tensor, counts: Tensor) -> Tensor:
    """The root mean square of each group, in float64 where the squares leave the range of float32."""
    rms = (rows.square().sum(-1) / counts).sqrt()
    if not ((rms > 1e-15) & (rms < 1e15)).all():
        rms = (rows.double().square().sum(-1) / counts).sqrt().float()
    return rms


def _corrected(rows: Tensor, points: Tensor, correction: Correction) -> Tensor:
    inner = (rows * points).sum(-1)
    if correction is Correction.LEAST_SQUARES:
        return inner / points.square().sum(-1).clamp(min=1e-30)
    return (rows.square().sum(-1) / inner).nan_to_num(0, 0, 0)


def _nearest_level(values: Tensor, levels: Tensor) -> Tensor:
    import torch

    middle = (levels[1:] + levels[:-1]) / 2
    if len(middle) > 20:
        return torch.bucketize(values, middle, out_int32=True)
    index = torch.zeros_like(values, dtype=torch.int32)
    for border in middle.tolist():
        index += values > border
    return index


# ---- rotation ----------------------------------------------------------------------------------------------------


@lru_cache
def _rotation(size: int, seed: int) -> Transform:
    """The same for every group of ``size``: a randomized Hadamard transform where there is one of that order."""
    from qcompile.transforms import Hadamard, RandomOrthogonal, has_hadamard

    return Hadamard(size, seed) if has_hadamard(size) else RandomOrthogonal(size, seed)


def _registry() -> list[VectorFormat]:
    higgs, turbo = "HIGGS, arXiv:2411.17525", "TurboQuant, arXiv:2504.19874"
    found = [VectorFormat(f"higgs-p1-n{2**b}", 1, b, source=higgs) for b in (2, 3, 4, 5, 6)]
    found += [VectorFormat(f"higgs-p2-n{2**b}", 2, b, source=higgs) for b in (4, 6, 8)]
    found.append(VectorFormat("e8p", 8, 16, lattice="e8p", stretch=1 / 1.03, source="QuIP#, arXiv:2402.04396"))
    for bits in (1, 2, 3, 4):
        made = partial(VectorFormat, dimension=1, code_bits=bits, group=None, rotated=True)
        found.append(made(f"turboquant{bits}", source=turbo))
        for correction in (Correction.LEAST_SQUARES, Correction.UNBIASED):
            name = {"least-squares": f"eden{bits}", "unbiased": f"eden{bits}-unbiased"}[correction.value]
            source = "EDEN, arXiv:2108.08842"
            found.append(made(name, correction=correction, source=source))
    return found


VECTOR_FORMATS: dict[str, VectorFormat] = {fmt.name: fmt for fmt in _registry()}
