"""A tensor as rows of groups along one axis, in chunks that fit the cache: how every encoder walks over its input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from qcompile.errors import InputError
from qcompile.formats.format import Format
from qcompile.formats.scales import Scales

__all__ = ["CHUNK", "Rows", "chunk_of", "decode_lines", "group_chunks", "line_slice", "moved_last"]

CHUNK = 1 << 17  # elements; 512 KiB of float32, which stays in a core's second-level cache
_DEVICE_CHUNK = 1 << 26  # the same on a GPU, where a chunk costs launches


def chunk_of(x: Tensor) -> int:
    """Elements of a tensor to work on at a time, where it is."""
    return CHUNK if x.device.type == "cpu" else _DEVICE_CHUNK


def moved_last(x: Tensor, axis: int) -> Tensor:
    """``x`` with ``axis`` moved last.

    Raises:
        InputError: if ``x`` is not floating point or has no such axis.
    """
    if not x.is_floating_point():
        raise InputError(f"cannot quantize a tensor of {x.dtype}: expected a floating-point dtype")
    if not -x.dim() <= axis < x.dim():
        raise InputError(f"cannot quantize along axis {axis}: the tensor has {x.dim()} axes")
    return x.movedim(axis, -1)


def line_slice(moved: Tensor, part: slice) -> Tensor:
    """Some of the lines along the last axis, ``[lines, size]``, all other axes taken as one; copies nothing else."""
    if moved.dim() <= 2 or moved.is_contiguous():
        return moved.reshape(math.prod(moved.shape[:-1]), moved.shape[-1])[part]
    lines = torch.arange(*part.indices(math.prod(moved.shape[:-1])), device=moved.device)
    return moved[torch.unravel_index(lines, moved.shape[:-1])]


def group_chunks(moved: Tensor, group: int, limit: int) -> Iterator[tuple[slice, Tensor]]:
    """Lines along the last axis, about ``limit`` values at a time: float32 ``[lines, groups, group]``, zero-padded."""
    lines, size = math.prod(moved.shape[:-1]), moved.shape[-1]
    groups = -(-size // group)
    step = max(1, limit // max(groups * group, 1))
    for start in range(0, lines if size else 0, step):
        part = slice(start, start + step)
        rows = torch.nn.functional.pad(line_slice(moved, part).float(), (0, groups * group - size))
        yield part, rows.view(-1, groups, group)


def decode_lines(
    shape: tuple[int, ...], axis: int, scales: Tensor, decode: Callable[[slice], Tensor], per_scale: int
) -> Tensor:
    """A float32 tensor of ``shape``, decoded some lines along ``axis`` at a time.

    Args:
        scales: ``[lines, groups, ...]``, one line for each.
        decode: the values of some lines, ``[lines, groups, per_scale]``; what is beyond the axis is padding.
    """
    lead, size = [n for i, n in enumerate(shape) if i != axis], shape[axis]
    out = torch.empty(math.prod(lead), size, device=scales.device)
    step = max(1, chunk_of(scales) // max(scales.shape[1] * per_scale, 1))
    for start in range(0, len(out) if out.numel() else 0, step):
        part = slice(start, start + step)
        out[part] = decode(part).flatten(1)[:, :size]
    return out.view(*lead, size).movedim(-1, axis)


@dataclass(frozen=True)
class Rows:
    """A tensor seen as rows of groups, and cut into chunks that fit the cache.

    Where groups divide the axis and no scale spans rows, a "row" is a single group, so that a very long axis is cut
    too; otherwise it is a line along the axis, padded with zeros chunk by chunk.
    """

    x: Tensor  # [..., width]
    lead: tuple[int, ...]  # the other axes
    axis: int
    size: int  # of the axis
    width: int  # values of a row
    group: int
    groups: int  # of a row
    rows: int  # that must stay in one chunk
    columns: Tensor | None = None  # what each position along the axis is divided by

    @staticmethod
    def of(x: Tensor, fmt: Format, axis: int, columns: Tensor | None = None) -> Rows:
        """Check ``x`` and choose its rows."""
        moved = moved_last(x, axis)
        lead, size = tuple(moved.shape[:-1]), moved.shape[-1]
        group = fmt.group or max(size, 1)
        rows = partial(Rows, lead=lead, axis=axis % x.dim(), size=size, group=group, rows=fmt.rows)
        if fmt.rows == 1 and columns is None and size and size % group == 0 and moved.is_contiguous():
            return rows(moved.reshape(-1, group), width=group, groups=1)
        return rows(moved, width=size, groups=-(-size // group), columns=columns)

    @property
    def count(self) -> int:
        """Number of rows."""
        return math.prod(self.x.shape[:-1])

    @property
    def groups_per_row(self) -> int:
        """Groups along the whole axis."""
        return -(-self.size // self.group)

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of rows, with their values as float32 ``[rows, groups, group]``."""
        padded = self.groups * self.group
        if padded == 0:
            return
        step = max(1, chunk_of(self.x) // (padded * self.rows)) * self.rows
        for start in range(0, self.count, step):
            part = slice(start, min(start + step, self.count))
            values = line_slice(self.x, part).float()
            if self.columns is not None:
                values = values / self.columns
            if padded != self.width:
                values = torch.nn.functional.pad(values, (0, padded - self.width))
            yield part, values.reshape(-1, self.groups, self.group)

    def empty_codes(self) -> Tensor:
        """Room for one byte per value, ``[rows, groups, group]``.

        It is laid out as the values are, where they are a matrix: chunks are then written in order, not transposed.
        """
        if self.x.dim() == 2 and self.groups * self.group == self.width:
            return torch.empty_like(self.x, dtype=torch.uint8).view(self.count, self.groups, self.group)
        return torch.empty(self.count, self.groups, self.group, dtype=torch.uint8, device=self.x.device)

    def check(self, scales: Scales | None) -> None:
        """Given scales must be ``[..., groups]``."""
        expected = (*self.lead, self.groups_per_row)
        if scales is not None and tuple(scales.scale.shape) != expected:
            raise InputError(f"scales have shape {tuple(scales.scale.shape)}, the tensor needs {expected}")

    def shape_scales(self, stored: Scales) -> Scales:
        """Scales in the shape of the other axes and the groups."""
        shape = (*self.lead, self.groups_per_row)
        zero_point = None if stored.zero_point is None else stored.zero_point.view(shape)
        return Scales(stored.scale.view(shape), zero_point, stored.tensor_scale)
