"""Quantize and dequantize tensors in any scalar block format.

The arithmetic is float32 and defined to the bit: with ``s = fl(scale · tensor_scale)``, a value ``x`` becomes the code
nearest to ``fl(x / s)`` and reads back as ``fl(s · level)``. Tensors stream through in chunks that fit the cache, so
that memory beyond input and output is a few chunks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, overload

import torch
from torch import Tensor

from qcompile.formats.format import Format
from qcompile.formats.rounding import decode_element, encode_element, round_element, zero_code
from qcompile.formats.rows import Rows, chunk_of
from qcompile.formats.scales import Scales, divisor, group_scales
from qcompile.formats.tensor_scale import default_tensor_scale

__all__ = [
    "Quantized", "Structured", "compute_scales", "decode", "encode", "quantize", "quantize_rows", "round_to",
]  # fmt: skip


class Dequantizes(Protocol):
    """A quantized tensor of any format."""

    def dequantize(self) -> Tensor:
        """The float32 values, in the original shape."""


Q_co = TypeVar("Q_co", bound=Dequantizes, covariant=True)


class Structured(Protocol[Q_co]):
    """A format with a structure of its own, which brings its own encoder."""

    def quantize(self, x: Tensor, axis: int = -1) -> Q_co:
        """Round a tensor to the nearest values of the format."""


# ---- elementwise, scales given -----------------------------------------------------------------------------------


def round_to(x: Tensor, scale: Tensor, zero_point: Tensor | None, fmt: Format) -> Tensor:
    """Round to the format with scales fixed beforehand: GPTQ's step, one column at a time.

    Args:
        x: float32 values of any shape.
        scale: effective scales (``Scales.effective``), broadcast against ``x``.
        zero_point: broadcast against ``x``, or None.

    Returns:
        the dequantized values, float32, of the broadcast shape.
    """
    rounded, empty = round_element(x / divisor(scale), fmt.element, zero_point).mul_(scale), scale == 0
    if x.device.type == "cpu" and not empty.any():  # elsewhere to ask is to wait
        return rounded
    return rounded.masked_fill_(empty, 0)  # no minus zero: the codes are those of zero


def encode(x: Tensor, scale: Tensor, zero_point: Tensor | None, fmt: Format) -> Tensor:
    """Like :func:`round_to`, but the uint8 codes. Where the scale is zero or NaN, the code of zero."""
    codes = encode_element(x / divisor(scale), fmt.element, zero_point)
    unusable = (scale == 0) | scale.isnan()
    if unusable.any():
        empty = zero_code(fmt.element) if zero_point is None else zero_point
        codes = torch.where(unusable, empty, codes).to(torch.uint8)
    return codes


def decode(codes: Tensor, scale: Tensor, zero_point: Tensor | None, fmt: Format) -> Tensor:
    """The float32 values of uint8 codes; the arguments are those of :func:`encode`."""
    return decode_element(codes, fmt.element, zero_point).mul_(scale)


# ---- whole tensors -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantized:
    """A tensor in a scalar block format.

    Args:
        format: the format.
        shape: shape of the original tensor.
        axis: the axis along which groups run, non-negative.
        codes: uint8 element codes with ``axis`` moved last and padded to whole groups, ``[..., groups · group]``; not
            always contiguous.
        scales: float32 values of the stored, rounded scales, ``[..., groups]``.
        zero_points: uint8 ``[..., groups]``, or None.
        tensor_scale: float32 scalar, or None.
    """

    format: Format
    shape: tuple[int, ...]
    axis: int
    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None = None
    tensor_scale: Tensor | None = None

    @property
    def all_scales(self) -> Scales:
        """Scales, zero points and tensor scale as one value, to quantize again with."""
        return Scales(self.scales, self.zero_points, self.tensor_scale)

    def to(self, device: torch.device | str) -> Quantized:
        """The same with every tensor on a device."""
        codes, scales = self.codes.to(device), self.scales.to(device)
        zero_points = None if self.zero_points is None else self.zero_points.to(device)
        tensor_scale = None if self.tensor_scale is None else self.tensor_scale.to(device)
        return replace(self, codes=codes, scales=scales, zero_points=zero_points, tensor_scale=tensor_scale)

    def dequantize(self) -> Tensor:
        """The float32 values, in the original shape."""
        lead = [n for i, n in enumerate(self.shape) if i != self.axis]
        out = torch.empty(*lead, self.shape[self.axis], device=self.codes.device)
        if out.numel():
            codes = self.codes.view(-1, self.scales.shape[-1], self.codes.shape[-1] // self.scales.shape[-1])
            _dequantize_into(out.view(codes.shape[0], -1), codes, self.all_scales, self.format)
        return out.movedim(-1, self.axis)


def _dequantize_into(out: Tensor, codes: Tensor, scales: Scales, fmt: Format) -> None:
    rows, groups, group = codes.shape
    step = max(1, chunk_of(codes) // (groups * group))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        scale, zero_point = _rows_of(scales, part, groups)
        out[part] = decode(codes[part], scale, zero_point, fmt).flatten(1)[:, : out.shape[1]]


def _rows_of(scales: Scales, part: slice, groups: int) -> tuple[Tensor, Tensor | None]:
    """Effective scales and zero points of some rows, ``[rows, groups, 1]``."""
    scale = Scales(scales.scale.reshape(-1, groups)[part], None, scales.tensor_scale).effective.unsqueeze(-1)
    if scales.zero_point is None:
        return scale, None
    return scale, scales.zero_point.reshape(-1, groups)[part].unsqueeze(-1)


@overload
def quantize(
    x: Tensor,
    fmt: Format,
    axis: int = -1,
    scales: Scales | None = None,
    tensor_scale: Tensor | float | None = None,
) -> Quantized: ...


@overload
def quantize(x: Tensor, fmt: Structured[Q_co], axis: int = -1) -> Q_co: ...


def quantize(
    x: Tensor,
    fmt: Format | Structured[Q_co],
    axis: int = -1,
    scales: Scales | None = None,
    tensor_scale: Tensor | float | None = None,
) -> Quantized | Q_co:
    """Round a tensor to the nearest values of a format.

    Args:
        x: any float dtype and shape (converted to float32 chunk by chunk).
        fmt: the format.
        axis: the axis along which groups run.
        scales: use these instead of the format's rule (from :func:`compute_scales` or ``search_scales``).
        tensor_scale: use this second-level scale, for instance one shared by several weights.

    Raises:
        InputError: if ``x`` has no axes, is not floating point, or ``scales`` has another shape.
    """
    if not isinstance(fmt, Format):
        return fmt.quantize(x, axis)
    view = Rows.of(x, fmt, axis)
    view.check(scales)
    return quantize_rows(view, tuple(x.shape), fmt, _tensor_scale_of(x, fmt, scales, tensor_scale), scales)


def quantize_rows(
    view: Rows, shape: tuple[int, ...], fmt: Format, tensor_scale: Tensor | None, scales: Scales | None = None
) -> Quantized:
    """:func:`quantize` of the values that a view yields, which belong to a tensor of ``shape``."""
    codes, stored = view.empty_codes(), _empty_scales(view, fmt, tensor_scale)
    for part, groups in view.chunks():
        local = _chunk_scales(groups, fmt, scales, tensor_scale, part)
        _store(stored, local, part)
        zero_point = None if local.zero_point is None else local.zero_point.unsqueeze(-1)
        codes[part] = encode(groups, local.effective.unsqueeze(-1), zero_point, fmt)
    shaped = view.shape_scales(stored)
    codes = codes.view(*view.lead, view.groups_per_row * view.group)
    return Quantized(fmt, shape, view.axis, codes, shaped.scale, shaped.zero_point, tensor_scale)


def compute_scales(x: Tensor, fmt: Format, axis: int = -1, tensor_scale: Tensor | float | None = None) -> Scales:
    """The scales that :func:`quantize` would store, without the codes. Shapes as in :class:`Scales`."""
    view = Rows.of(x, fmt, axis)
    tensor_scale = _tensor_scale_of(x, fmt, None, tensor_scale)
    stored = _empty_scales(view, fmt, tensor_scale)
    for part, groups in view.chunks():
        _store(stored, group_scales(groups, fmt, tensor_scale), part)
    return view.shape_scales(stored)


def _tensor_scale_of(x: Tensor, fmt: Format, scales: Scales | None, given: Tensor | float | None) -> Tensor | None:
    if scales is not None:
        return scales.tensor_scale
    if given is not None:
        return torch.as_tensor(given, dtype=torch.float32, device=x.device)
    return default_tensor_scale(x, fmt)


def _chunk_scales(
    groups: Tensor, fmt: Format, scales: Scales | None, tensor_scale: Tensor | None, part: slice
) -> Scales:
    if scales is None:
        return group_scales(groups, fmt, tensor_scale)
    width = groups.shape[1]
    zero_point = scales.zero_point
    zero_point = None if zero_point is None else zero_point.reshape(-1, width)[part]
    return Scales(scales.scale.reshape(-1, width)[part], zero_point, tensor_scale)


def _empty_scales(view: Rows, fmt: Format, tensor_scale: Tensor | None) -> Scales:
    shape = (view.count, view.groups)
    zero_point = torch.empty(shape, dtype=torch.uint8, device=view.x.device) if fmt.zero_point else None
    return Scales(torch.empty(shape, device=view.x.device), zero_point, tensor_scale)


def _store(stored: Scales, local: Scales, part: slice) -> None:
    stored.scale[part] = local.scale
    if stored.zero_point is not None and local.zero_point is not None:
        stored.zero_point[part] = local.zero_point
