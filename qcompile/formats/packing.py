"""Codes to bytes and back: a little-endian bit stream, which every layout is built on.

Two four-bit codes share a byte, the low nibble first along the axis; codes of three, five and six bits run across byte
borders. ``packed`` stores whole tensors this way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompile.errors import InputError

__all__ = ["pack_codes", "unpack_codes"]


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 codes ``[..., n]`` of ``bits`` bits into uint8 ``[..., ⌈n · bits / 8⌉]``, contiguous, zero-padded.

    Raises:
        InputError: if ``bits`` is not 1 to 8.
    """
    _check_bits(bits)
    if bits == 8:
        return codes.clone(memory_format=torch.contiguous_format)
    per = 8 // bits
    if bits * per != 8:
        return _pack_across(codes, bits)
    if codes.shape[-1] % per:
        codes = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % per))
    out = codes[..., per - 1 :: per]
    for i in reversed(range(per - 1)):
        out = (out << bits).bitwise_or_(codes[..., i::per])
    return out.contiguous()


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
