"""The byte layouts of particular runtimes: onnxruntime's MatMulNBits, TensorRT and cuBLAS block-scaled FP4, GGUF."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.errors import InputError
from qcompile.formats.format import Element, Format, Kind, ScaleType
from qcompile.formats.packing import pack_codes, unpack_codes
from qcompile.formats.quantizer import Quantized
from qcompile.formats.scales import scale_code, scale_from_code

__all__ = [
    "BlockScaled",
    "MatMulNBits",
    "from_block_scaled",
    "from_gguf",
    "from_matmulnbits",
    "swizzle_scales",
    "to_block_scaled",
    "to_gguf",
    "to_matmulnbits",
    "unswizzle_scales",
]


def _matrix(q: Quantized, runtime: str) -> tuple[int, int]:
    """Rows and groups of a weight ``[N, K]`` quantized along K, or an InputError."""
    if len(q.shape) != 2 or q.axis != 1 or q.codes.numel() == 0:
        raise InputError(f"{runtime} stores a weight [N, K] quantized along its last axis, not {q.shape}")
    return q.scales.shape[0], q.scales.shape[1]


# ---- onnxruntime -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MatMulNBits:
    """The inputs of ``com.microsoft.MatMulNBits`` for a weight ``[N, K]``.

    Args:
        b: uint8 ``[N, groups, group · bits / 8]``, unsigned codes, the low bits first.
        scales: float32 ``[N · groups]``.
        zero_points: uint8 ``[N · ⌈groups · bits / 8⌉]``; None means ``2^(bits - 1)``.
        bits, block_size: the attributes.
    """

    b: Tensor
    scales: Tensor
    zero_points: Tensor | None
    bits: int
    block_size: int


#: The signs of all codes of a byte, by their bits.
_SIGNS = {2: 0b10101010, 4: 0b10001000, 8: 0b10000000}


def to_matmulnbits(q: Quantized) -> MatMulNBits:
    """Integer codes of 2, 4 or 8 bits; the tensor scale, if any, goes into the scales.

    Raises:
        InputError: for elements that are not integers, other widths and blocks that the operator rejects.
    """
    rows, groups = _matrix(q, "MatMulNBits")
    element, group = q.format.element, q.codes.shape[1] // groups
    _check_matmulnbits(element, group)
    packed = pack_codes(q.codes, element.bits)
    if element.levels[0] < 0:  # two's complement to offset binary
        packed ^= _SIGNS[element.bits]
    zero_points = None if q.zero_points is None else pack_codes(q.zero_points, element.bits).flatten()
    scales = (q.all_scales.effective * element.step).flatten()
    return MatMulNBits(packed.view(rows, groups, -1), scales, zero_points, element.bits, group)


def _check_matmulnbits(element: Element, group: int) -> None:
    if element.kind is not Kind.INTEGER or element.bits not in (2, 4, 8):
        raise InputError(f"MatMulNBits stores integers of 2, 4 or 8 bits, not {element.name}")
    if group < 16 or group & (group - 1):
        raise InputError(f"MatMulNBits needs blocks of a power of two from 16 on, not {group}")


def from_matmulnbits(packed: MatMulNBits, fmt: Format, size: int) -> Quantized:
    """The inverse of :func:`to_matmulnbits` for a weight ``[N, size]`` (the tensor scale stays in the scales)."""
    rows, groups, _ = packed.b.shape
    codes = unpack_codes(packed.b, packed.bits, packed.block_size).flatten(1)
    if fmt.element.levels[0] < 0:
        codes = codes ^ (1 << (packed.bits - 1))
    zero_points = packed.zero_points
    if zero_points is not None:
        zero_points = unpack_codes(zero_points.view(rows, -1), packed.bits, groups)
    scales = packed.scales.view(rows, groups) / fmt.element.step
    return Quantized(fmt, (rows, size), 1, codes, scales, zero_points)


# ---- TensorRT, cuBLAS: block-scaled FP4, FP6, FP8 ----------------------------------------------------------------


@dataclass(frozen=True)
class BlockScaled:
    """A weight ``[N, K]`` as block-scaled matrix instructions read it.

    Args:
        codes: uint8, E2M1 packed in pairs ``[N, K/2]``, other elements one a byte ``[N, K]``.
        scales: uint8 E4M3 or E8M0 bytes: ``[N, groups]``, or flat and swizzled.
        tensor_scale: float32 scalar, or None.
        swizzled: whether ``scales`` are in the 128x4 tile layout of :func:`swizzle_scales`.
    """

    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor | None
    swizzled: bool


def to_block_scaled(q: Quantized, swizzled: bool = False) -> BlockScaled:
    """NVFP4 and MX formats.

    Raises:
        InputError: if the element is no float or the scale no byte.
    """
    _matrix(q, "a block-scaled matrix")
    if q.format.scale not in (ScaleType.E4M3, ScaleType.E8M0):
        raise InputError(f"block-scaled matrices have E4M3 or E8M0 scales, not those of {q.format.name}")
    codes = pack_codes(q.codes, 4) if q.format.bits == 4 else q.codes
    scales = scale_code(q.scales, q.format.scale)
    return BlockScaled(codes, swizzle_scales(scales) if swizzled else scales, q.tensor_scale, swizzled)


def from_block_scaled(packed: BlockScaled, fmt: Format, shape: tuple[int, int]) -> Quantized:
    """The inverse of :func:`to_block_scaled` for a weight of ``shape``."""
    groups = -(-shape[1] // (fmt.group or shape[1]))
    scales = unswizzle_scales(packed.scales, shape[0], groups) if packed.swizzled else packed.scales
    width = packed.codes.shape[1] * (2 if fmt.bits == 4 else 1)
    codes = unpack_codes(packed.codes, 4, width) if fmt.bits == 4 else packed.codes
    return Quantized(fmt, shape, 1, codes, scale_from_code(scales, fmt.scale), None, packed.tensor_scale)


def swizzle_scales(scales: Tensor) -> Tensor:
    """Scale bytes ``[rows, groups]`` in the layout of cuBLAS "1D block scaling factors", flat.

    Tiles of 128 rows x 4 groups, row-major among themselves, each 512 bytes with row ``r``, group ``c`` at
    ``(r % 32) · 16 + (r // 32) · 4 + c``. Rows and groups are padded with zeros.
    """
    rows, groups = scales.shape
    padded = torch.nn.functional.pad(scales, (0, -groups % 4, 0, -rows % 128))
    tiles = padded.view(-1, 4, 32, padded.shape[1] // 4, 4)  # row tile, r // 32, r % 32, group tile, c
    return tiles.permute(0, 3, 2, 1, 4).flatten()


def unswizzle_scales(flat: Tensor, rows: int, groups: int) -> Tensor:
    """The inverse of :func:`swizzle_scales`."""
    tiles = flat.view(-(-rows // 128), -(-groups // 4), 32, 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(-(-rows // 128) * 128, -1)[:rows, :groups]


# ---- GGUF --------------------------------------------------------------------------------------------------------


def to_gguf(q: Quantized) -> Tensor:
    """Blocks of GGML as uint8 ``[..., blocks · bytes]``: scales first, then codes in the order of :func:`_nibbles`.

    ``block_q4_0`` (18 bytes), ``block_q5_0`` (22, the fifth bits as 32 bits in front) and ``block_q8_0`` (34) have a
    float16 scale and codes plus 8, 16 and 0; ``block_q4_1`` (20) a float16 scale and the value of code 0, the product
    of scale and zero point rounded to float16; ``block_mxfp4`` (17) an E8M0 byte; ``block_nvfp4`` (36) holds four
    groups of 16 with four E4M3 bytes in front, filled up with zeros, and its tensor scale is stored elsewhere.

    Raises:
        InputError: for any format that is not one of these.
    """
    fmt = q.format
    group = _gguf_group(fmt)
    codes, scales = q.codes.unflatten(-1, (-1, group)), scale_code(q.scales, fmt.scale).unsqueeze(-1)
    if group == 16:
        fill = -codes.shape[-2] % 4
        codes, scales = (torch.nn.functional.pad(t, (0, 0, 0, fill)).unflatten(-2, (-1, 4)) for t in (codes, scales))
        return torch.cat([scales.flatten(-2), _nibbles(codes).flatten(-2)], -1).flatten(-2)
    parts = [scales.view(torch.uint8)]
    if q.zero_points is not None:
        parts.append((q.zero_points.float().neg() * q.scales).half().unsqueeze(-1).view(torch.uint8))
    if fmt.bits == 5:
        parts.append(pack_codes((codes >> 4) ^ 1, 1))
    flip = 8 if fmt.bits == 4 and fmt.element.kind is Kind.INTEGER and not fmt.zero_point else 0
    parts.append(codes if fmt.bits == 8 else _nibbles((codes ^ flip) & 15))
    return torch.cat(parts, -1).flatten(-2)


def from_gguf(blocks: Tensor, fmt: Format, shape: tuple[int, ...], tensor_scale: Tensor | None = None) -> Quantized:
    """The inverse of :func:`to_gguf` for a tensor of ``shape`` quantized along its last axis."""
    group = _gguf_group(fmt)
    groups = -(-shape[-1] // group)
    zeros: Tensor | None = None
    if group == 16:
        parts = blocks.unflatten(-1, (-1, 36))
        scales = parts[..., :4].flatten(-2)[..., :groups]
        codes = _from_nibbles(parts[..., 4:].unflatten(-1, (4, 8))).flatten(-3, -2)[..., :groups, :]
    else:
        width = fmt.scale.bits // 8
        parts = blocks.unflatten(-1, (-1, width * (2 if fmt.zero_point else 1) + 4 * fmt.bits))
        scales = parts[..., :width].contiguous()
        scales = (scales.view(torch.float16) if width == 2 else scales)[..., 0]
        codes = parts[..., width:] if fmt.bits == 8 else _from_nibbles(parts[..., -16:])
        if fmt.zero_point:
            lowest = parts[..., width : 2 * width].contiguous().view(torch.float16)[..., 0].float()
            zeros = (-lowest / scales.float()).nan_to_num(0).round().to(torch.uint8)
        elif fmt.element.kind is Kind.INTEGER and fmt.bits == 4:
            codes = codes ^ 8
        elif fmt.bits == 5:
            codes = codes | (unpack_codes(parts[..., width : width + 4], 1, 32) ^ 1) << 4
    return Quantized(
        fmt, shape, len(shape) - 1, codes.flatten(-2), scale_from_code(scales, fmt.scale), zeros, tensor_scale
    )


def _nibbles(codes: Tensor) -> Tensor:
    """GGML's order: value ``j`` of a block in the low nibble of byte ``j``, its second half in the high nibbles."""
    low, high = codes.chunk(2, -1)
    return low | (high << 4)


def _from_nibbles(packed: Tensor) -> Tensor:
    return torch.cat([packed & 15, packed >> 4], -1)


def _gguf_group(fmt: Format) -> int:
    """Elements that share a scale; formats that GGUF does not know are refused."""
    element = fmt.element
    signed = element.kind is Kind.INTEGER and element.levels[0] < 0 and element.step == 1
    known = (
        signed and fmt.group == 32 and fmt.bits in (4, 5, 8) and fmt.scale is ScaleType.FP16,
        element.name == "e2m1" and fmt.group == 32 and fmt.scale is ScaleType.E8M0 and fmt.rule.value != "four-thirds",
        element.name == "e2m1" and fmt.group == 16 and fmt.scale is ScaleType.E4M3,
        element.name == "uint4" and fmt.group == 32 and fmt.scale is ScaleType.FP16 and fmt.zero_point,
    )
    if fmt.group is None or not any(known):
        raise InputError(f"GGUF has no block for {fmt.name}: it takes q4_0, q4_1, q5_0, q8_0, mxfp4 and nvfp4")
    return fmt.group
