"""Codes to bytes and back: a little-endian bit stream, which every layout here is built on.

Two four-bit codes share a byte, the low nibble first along the axis; codes of three, five and six bits run across byte
borders. :func:`pack` stores a whole :class:`Quantized` this way; layouts of particular runtimes are in ``layouts``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.errors import InputError
from qcompile.formats.format import Format
from qcompile.formats.quantizer import Quantized
from qcompile.formats.scales import scale_code, scale_from_code

__all__ = ["Packed", "pack", "pack_codes", "unpack", "unpack_codes"]


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 codes ``[..., n]`` of ``bits`` bits into uint8 ``[..., ⌈n · bits / 8⌉]``, zero-padded.

    Raises:
        InputError: if ``bits`` is not 1 to 8.
    """
    _check_bits(bits)
    if bits == 8:
        return codes.clone()
    per = 8 // bits
    if bits * per != 8:
        return _pack_across(codes, bits)
    parts = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % per)).unflatten(-1, (-1, per))
    out = parts[..., 0].clone()
    for i in range(1, per):
        out |= parts[..., i] << (i * bits)
    return out


def _pack_across(codes: Tensor, bits: int) -> Tensor:
    """Eight codes fill ``bits`` bytes."""
    count = codes.shape[-1]
    parts = torch.nn.functional.pad(codes, (0, -count % 8)).unflatten(-1, (-1, 8))
    out = torch.zeros(*parts.shape[:-1], bits, dtype=torch.uint8, device=codes.device)
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        out[..., byte] |= parts[..., i] << shift
        if shift + bits > 8:
            out[..., byte + 1] |= parts[..., i] >> (8 - shift)
    return out.flatten(-2)[..., : -(-count * bits // 8)]


def unpack_codes(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of :func:`pack_codes`: ``count`` codes along the last axis.

    Raises:
        InputError: if ``packed`` does not hold exactly that many.
    """
    _check_bits(bits)
    if packed.shape[-1] != -(-count * bits // 8):
        raise InputError(f"{packed.shape[-1]} bytes do not hold {count} codes of {bits} bits")
    if bits == 8:
        return packed.clone()
    per = 8 // bits
    if bits * per != 8:
        return _unpack_across(packed, bits)[..., :count]
    parts = [(packed >> (i * bits)) & (2**bits - 1) for i in range(per)]
    return torch.stack(parts, -1).flatten(-2)[..., :count]


def _unpack_across(packed: Tensor, bits: int) -> Tensor:
    parts = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % bits)).unflatten(-1, (-1, bits))
    out = torch.empty(*parts.shape[:-1], 8, dtype=torch.uint8, device=packed.device)
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        code = parts[..., byte] >> shift
        if shift + bits > 8:
            code = code | (parts[..., byte + 1] << (8 - shift))
        out[..., i] = code & (2**bits - 1)
    return out.flatten(-2)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise InputError(f"cannot pack codes of {bits} bits: 1 to 8")


@dataclass(frozen=True)
class Packed:
    """A :class:`Quantized` as bytes, as many as ``Format.bits_per_weight`` counts (rounded up to whole bytes a row).

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


def pack(q: Quantized) -> Packed:
    """Pack codes, scales and zero points of a tensor."""
    bits = q.format.bits
    scales = scale_code(q.scales, q.format.scale)
    if q.format.rows > 1:
        scales = scales.reshape(math.prod(scales.shape[:-1]), scales.shape[-1])[:: q.format.rows]
    zero_points = None if q.zero_points is None else pack_codes(q.zero_points, bits)
    return Packed(q.format, q.shape, q.axis, pack_codes(q.codes, bits), scales, zero_points, q.tensor_scale)


def unpack(packed: Packed) -> Quantized:
    """The inverse of :func:`pack`, to the bit."""
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
