"""Quantized tensors of every format as bytes, as many as ``bits_per_weight`` counts, and back to the bit.

Codes are little-endian bit streams (``packing``), padded with zeros to whole bytes along the axis; scales are their
8-bit codes or a float dtype. E8P's 16-bit codes take two bytes, the low one first; five trits of a plane fill a byte
in base three, the first one least. Layouts of particular runtimes are in ``layouts``.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, ClassVar

import torch
from torch import Tensor

from qcompile.formats.format import Format
from qcompile.formats.packing import pack_codes, unpack_codes
from qcompile.formats.quantizer import Quantized
from qcompile.formats.scales import scale_code, scale_from_code
from qcompile.formats.structured.trit_planes import PlaneFormat, PlaneQuantized
from qcompile.formats.structured.twin_log import TwinLogFormat, TwinLogQuantized
from qcompile.formats.structured.two_axis import TwoAxisFormat, TwoAxisQuantized
from qcompile.formats.structured.vector import VectorFormat, VectorQuantized

__all__ = [
    "Packed", "PackedPlanes", "PackedTwinLog", "PackedTwoAxis", "PackedVector", "pack", "pack_trits", "unpack",
    "unpack_trits",
]  # fmt: skip


class _Bytes:
    """The common part of all packed tensors, which are dataclasses of tensors."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def nbytes(self) -> int:
        """Bytes of everything stored."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return sum(value.nbytes for value in values if isinstance(value, Tensor | _Bytes))


@dataclass(frozen=True)
class Packed(_Bytes):
    """A :class:`Quantized`: any scalar block format, those chosen by a :class:`FamilyFormat` included.

    Args:
        codes: uint8 ``[..., ⌈groups · group · bits / 8⌉]``.
        scales: uint8 codes or a float dtype, ``[..., groups]`` (for square blocks one row of scales per block).
        zero_points: uint8 ``[..., ⌈groups · bits / 8⌉]``, or None.
        tensor_scale: float32 scalar, or None.
    """

    format: Format
    shape: tuple[int, ...]
    axis: int
    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None
    tensor_scale: Tensor | None


@dataclass(frozen=True)
class PackedVector(_Bytes):
    """A :class:`VectorQuantized`.

    Args:
        codes: uint8 ``[..., ⌈groups · codes a group · code_bits / 8⌉]``.
        scales: ``[..., groups]``.
    """

    format: VectorFormat
    shape: tuple[int, ...]
    axis: int
    codes: Tensor
    scales: Tensor
    seed: int


@dataclass(frozen=True)
class PackedPlanes(_Bytes):
    """A :class:`PlaneQuantized`.

    Args:
        planes: uint8 ``[..., 2, ⌈groups · group / 5⌉]``.
        scales: ``[..., groups, 2]``.
    """

    format: PlaneFormat
    shape: tuple[int, ...]
    axis: int
    planes: Tensor
    scales: Tensor


@dataclass(frozen=True)
class PackedTwinLog(_Bytes):
    """A :class:`TwinLogQuantized`.

    Args:
        codes: uint8 ``[..., ⌈groups · group · bits / 8⌉]``.
        tops: ``[..., groups, 2]``.
        steps: uint8 ``[..., groups, 2]``.
    """

    format: TwinLogFormat
    shape: tuple[int, ...]
    axis: int
    codes: Tensor
    tops: Tensor
    steps: Tensor


@dataclass(frozen=True)
class PackedTwoAxis(_Bytes):
    """A :class:`TwoAxisQuantized`: the inner tensor, and the second scales ``[size of the axis]``."""

    format: TwoAxisFormat
    inner: Packed
    second: Tensor


AnyQuantized = Quantized | VectorQuantized | PlaneQuantized | TwoAxisQuantized | TwinLogQuantized
AnyPacked = Packed | PackedVector | PackedPlanes | PackedTwoAxis | PackedTwinLog


@singledispatch
def pack(q: AnyQuantized) -> AnyPacked:
    """The bytes of a quantized tensor of any format."""
    raise TypeError(f"cannot pack a {type(q).__name__}")


@singledispatch
def unpack(packed: AnyPacked) -> AnyQuantized:
    """The inverse of :func:`pack`, to the bit."""
    raise TypeError(f"cannot unpack a {type(packed).__name__}")


# ---- scalar block formats ----------------------------------------------------------------------------------------


@pack.register
def _pack_scalar(q: Quantized) -> Packed:
    bits = q.format.bits
    scales = scale_code(q.scales, q.format.scale)
    if q.format.rows > 1:
        scales = scales.reshape(math.prod(scales.shape[:-1]), scales.shape[-1])[:: q.format.rows]
    zero_points = None if q.zero_points is None else pack_codes(q.zero_points, bits)
    return Packed(q.format, q.shape, q.axis, pack_codes(q.codes, bits), scales, zero_points, q.tensor_scale)


@unpack.register
def _unpack_scalar(packed: Packed) -> Quantized:
    fmt = packed.format
    size = packed.shape[packed.axis]
    lead = [n for i, n in enumerate(packed.shape) if i != packed.axis]
    group = fmt.group or max(size, 1)
    groups = -(-size // group)
    scales = scale_from_code(packed.scales, fmt.scale)
    if fmt.rows > 1:
        scales = scales.repeat_interleave(fmt.rows, 0)[: math.prod(lead)].view(*lead, groups)
    zero_points = None if packed.zero_points is None else unpack_codes(packed.zero_points, fmt.bits, groups)
    codes = unpack_codes(packed.codes, fmt.bits, groups * group)
    return Quantized(fmt, packed.shape, packed.axis, codes, scales, zero_points, packed.tensor_scale)


# ---- vectors -----------------------------------------------------------------------------------------------------


@pack.register
def _(q: VectorQuantized) -> PackedVector:
    bits, codes = q.format.code_bits, q.codes.flatten(-2)
    packed = codes.to(torch.int16).view(torch.uint8) if bits == 16 else pack_codes(codes.to(torch.uint8), bits)
    return PackedVector(q.format, q.shape, q.axis, packed, scale_code(q.scales, q.format.scale), q.seed)


@unpack.register
def _(packed: PackedVector) -> VectorQuantized:
    fmt, scales = packed.format, scale_from_code(packed.scales, packed.format.scale)
    groups, per = scales.shape[-1], fmt.codes_per_group(packed.shape[packed.axis])
    if fmt.code_bits == 16:
        codes = packed.codes.view(torch.int16).int() & 0xFFFF
    else:
        codes = unpack_codes(packed.codes, fmt.code_bits, groups * per).int()
    codes = codes.view(*scales.shape, per)
    return VectorQuantized(fmt, packed.shape, packed.axis, codes, scales, packed.seed)


# ---- trit-planes -------------------------------------------------------------------------------------------------


@pack.register
def _(q: PlaneQuantized) -> PackedPlanes:
    planes = pack_trits(torch.stack([q.codes.flatten(-2) // 3, q.codes.flatten(-2) % 3], -2))
    return PackedPlanes(q.format, q.shape, q.axis, planes, scale_code(q.scales, q.format.scale))


@unpack.register
def _(packed: PackedPlanes) -> PlaneQuantized:
    group = packed.format.group or max(packed.shape[packed.axis], 1)
    scales = scale_from_code(packed.scales, packed.format.scale)
    trits = unpack_trits(packed.planes, scales.shape[-2] * group)
    codes = (trits[..., 0, :] * 3 + trits[..., 1, :]).view(*scales.shape[:-1], group)
    return PlaneQuantized(packed.format, packed.shape, packed.axis, codes, scales)


def pack_trits(trits: Tensor) -> Tensor:
    """uint8 trits 0, 1, 2 ``[..., n]`` as bytes ``[..., ⌈n / 5⌉]``, zero-padded."""
    parts = torch.nn.functional.pad(trits, (0, -trits.shape[-1] % 5)).unflatten(-1, (-1, 5))
    out = parts[..., 4].clone()
    for i in (3, 2, 1, 0):
        out.mul_(3).add_(parts[..., i])
    return out


def unpack_trits(packed: Tensor, count: int) -> Tensor:
    """The inverse of :func:`pack_trits`."""
    return torch.stack([packed // 3**i % 3 for i in range(5)], -1).flatten(-2)[..., :count]


# ---- two logarithms ----------------------------------------------------------------------------------------------


@pack.register
def _(q: TwinLogQuantized) -> PackedTwinLog:
    codes = pack_codes(q.codes.flatten(-2), q.format.bits)
    return PackedTwinLog(q.format, q.shape, q.axis, codes, scale_code(q.tops, q.format.scale), q.steps)


@unpack.register
def _(packed: PackedTwinLog) -> TwinLogQuantized:
    lead, groups = packed.steps.shape[:-2], packed.steps.shape[-2]
    group = packed.format.group or max(packed.shape[packed.axis], 1)
    codes = unpack_codes(packed.codes, packed.format.bits, groups * group).view(*lead, groups, group)
    tops = scale_from_code(packed.tops, packed.format.scale)
    return TwinLogQuantized(packed.format, packed.shape, packed.axis, codes, tops, packed.steps)


# ---- two axes ----------------------------------------------------------------------------------------------------


@pack.register
def _(q: TwoAxisQuantized) -> PackedTwoAxis:
    return PackedTwoAxis(q.format, _pack_scalar(q.inner), scale_code(q.second, q.format.second))


@unpack.register
def _(packed: PackedTwoAxis) -> TwoAxisQuantized:
    second = scale_from_code(packed.second, packed.format.second)
    return TwoAxisQuantized(packed.format, _unpack_scalar(packed.inner), second)
