"""Search for better scales than a rule gives: per group, by squared error weighted by importance.

The candidates depend only on how the scale is stored: shrunken copies of a float scale, neighbouring powers of two of
an E8M0 scale, neighbouring codes of an 8-bit float scale; then, in turns with the codes, the least-squares scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from qcompile.errors import InputError
from qcompile.formats.format import Format, ScaleType
from qcompile.formats.quantizer import _chunk_scales, _empty_scales, _store, _tensor_scale_of, round_to
from qcompile.formats.rows import Rows
from qcompile.formats.scales import (
    Scales,
    _share_error,
    divisor,
    group_error,
    group_scales,
    scale_code,
    scale_from_code,
    store_scale,
)

__all__ = ["LEAST_SHRINK", "search_scales", "total_error"]

LEAST_SHRINK = 0.5
_SHRINKS = tuple(1.0 - i / 50 for i in range(26))  # 1.00, 0.98 … 0.50
_EXPONENTS = (1, -1, -2)

#: A largest level of 4 in place of 6 is 4.7 codes up; what clips by more than two codes down is better nowhere.
_NEIGHBOURS = (1, -1, 2, -2, 3, 4, 5, 6)


def search_scales(
    x: Tensor,
    fmt: Format,
    axis: int = -1,
    weight: Tensor | None = None,
    tensor_scale: Tensor | float | None = None,
    shrinks: Sequence[float] = _SHRINKS,
    exponents: Sequence[int] = _EXPONENTS,
    neighbours: Sequence[int] = _NEIGHBOURS,
    rounds: int = 0,
) -> Scales:
    """Scales with the least ``Σ weight · (x̂ - x)²`` in each group; never worse than the format's rule.

    Args:
        x: the tensor to quantize.
        weight: importance of each position along ``axis``, ``[size]`` (the diagonal of E[xxᵀ] of a weight's input),
            or a tensor that broadcasts against ``x`` with ``axis`` moved last.
        shrinks: factors tried on float scales (and, with a zero point kept, on asymmetric ones).
        exponents: steps tried on E8M0 scales.
        neighbours: steps in code tried on E4M3 and UE5M3 scales.
        rounds: times that the scale which is best for the codes, as it is stored, is tried after these.

    Raises:
        InputError: if ``weight`` fits neither the axis nor the tensor.
    """
    view = Rows.of(x, fmt, axis)
    tensor_scale = _tensor_scale_of(x, fmt, None, tensor_scale)
    importance = _Importance(weight, view)
    stored = _empty_scales(view, fmt, tensor_scale)
    steps = {ScaleType.E8M0: exponents, ScaleType.E4M3: neighbours, ScaleType.UE5M3: neighbours}
    options = steps.get(fmt.scale, shrinks)
    for part, groups in view.chunks():
        start = group_scales(groups, fmt, tensor_scale)
        _store(stored, _best(groups, start, fmt, importance.of(part), options, rounds), part)
    return view.shape_scales(stored)


def total_error(x: Tensor, fmt: Format, axis: int, scales: Scales | None = None, weight: Tensor | None = None) -> float:
    """``Σ weight · (x̂ - x)²`` over the whole tensor, broken groups and padding left out; the codes are never stored."""
    view = Rows.of(x, fmt, axis)
    tensor_scale = _tensor_scale_of(x, fmt, scales, None)
    importance = _Importance(torch.ones((), device=x.device) if weight is None else weight, view)
    total = 0.0
    for part, groups in view.chunks():
        local = _chunk_scales(groups, fmt, scales, tensor_scale, part)
        total += float(group_error(groups, local, fmt, importance.of(part)).nan_to_num_(0).double().sum())
    return total


class _Importance:
    """Importance per value, cut like the rows of a tensor."""

    def __init__(self, weight: Tensor | None, view: Rows) -> None:
        self.view, self.weight = view, None
        if weight is None:
            return
        try:
            full = weight.float().expand(*view.lead, view.size)
        except RuntimeError:
            shapes = f"{tuple(weight.shape)} does not fit {(*view.lead, view.size)}"
            raise InputError(f"importance of shape {shapes}") from None
        self.weight = full
        self.shared = math.prod(weight.shape[:-1]) == 1 if weight.dim() else True

    def of(self, part: slice) -> Tensor | None:
        """Importance of some rows, ``[rows, groups, group]``, zero in the padding."""
        if self.weight is None:
            return None
        view = self.view
        lines = torch.arange(part.start, part.stop, device=self.weight.device)
        per_line = view.groups_per_row // view.groups
        if self.shared:
            line = self.weight.reshape(-1, view.size)[:1] if self.weight.dim() > 1 else self.weight[None]
            line = self._grouped(line)
            return line if per_line == 1 else line.view(-1, 1, view.group)[lines % per_line]
        flat = self.weight.reshape(-1, view.size)
        if per_line == 1:
            return self._grouped(flat[part])
        return flat.view(-1, 1, view.group)[part]

    def _grouped(self, lines: Tensor) -> Tensor:
        padded = self.view.groups_per_row * self.view.group
        lines = torch.nn.functional.pad(lines, (0, padded - self.view.size))
        return lines.view(lines.shape[0], -1, self.view.group)


def _candidates(start: Scales, fmt: Format, options: Sequence[float]) -> Iterator[Tensor]:
    scale = start.scale
    if fmt.scale is ScaleType.E8M0:
        for step in options:
            yield scale_from_code((scale_code(scale, fmt.scale).int() + int(step)).clamp(0, 254), fmt.scale)
    elif fmt.scale in (ScaleType.E4M3, ScaleType.UE5M3):
        top = 126 if fmt.scale is ScaleType.E4M3 else 254
        codes = scale_code(scale, fmt.scale).int()
        for step in options:
            yield scale_from_code((codes + int(step)).clamp(0, top).to(torch.uint8), fmt.scale)
    else:
        for factor in options:
            yield store_scale(scale * factor, fmt.scale)


def _best(
    groups: Tensor, start: Scales, fmt: Format, weight: Tensor | None, options: Sequence[float], rounds: int
) -> Scales:
    best, unusable = start.scale, start.scale.isnan()
    error = _share_error(group_error(groups, start, fmt, weight), fmt.rows)

    def tried(scale: Tensor) -> tuple[Tensor, Tensor]:
        trial = Scales(scale.masked_fill(unusable, torch.nan), start.zero_point, start.tensor_scale)
        found = _share_error(group_error(groups, trial, fmt, weight), fmt.rows)
        return torch.where(found < error, trial.scale, best), torch.minimum(error, found.nan_to_num(torch.inf))

    for scale in _candidates(start, fmt, options):
        best, error = tried(scale)
    for _ in range(0 if fmt.scale is ScaleType.E8M0 else rounds):  # between powers of two there is nothing to try
        best, error = tried(_least_squares(groups, Scales(best, start.zero_point, start.tensor_scale), fmt, weight))
    return Scales(best, start.zero_point, start.tensor_scale)


def _least_squares(groups: Tensor, scales: Scales, fmt: Format, weight: Tensor | None) -> Tensor:
    """The scales with the least error for the codes that these give, as they are stored."""
    effective = scales.effective.unsqueeze(-1)
    zero_point = None if scales.zero_point is None else scales.zero_point.unsqueeze(-1)
    units = round_to(groups, effective, zero_point, fmt) / divisor(effective)
    weighted = units if weight is None else units * weight
    lean, curve = (_share_error((weighted * other).sum(-1), fmt.rows) for other in (groups, units))
    second = 1.0 if scales.tensor_scale is None else scales.tensor_scale
    wanted = lean / (curve * second)
    return torch.where(wanted.isfinite() & (wanted * scales.scale > 0), store_scale(wanted, fmt.scale), scales.scale)
