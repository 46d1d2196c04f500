"""The layout of weights that kernels decode into bfloat16: words of planes.

K is cut into tiles of ``planes · PLANE`` columns. A tile is stored as int16 words ``[N, PLANE]``, and word ``c`` holds
the codes of columns ``c, PLANE + c, 2 · PLANE + c …`` of the tile: four codes of 4 bits, or two of 8. The tiles of K
follow each other, ``words [tiles, N, PLANE]``, so that what one program reads is contiguous.

==========  ==============================================================================================
codes       bits of plane p in a word
==========  ==============================================================================================
int         4p … 4p+3: the code minus the lowest level of the element, -8 (unsigned elements: the code)
float       E2M1, see ``FLOAT_BITS``
table       4p … 4p+3: the code
byte-int    8p … 8p+7: as int, with -128
byte-float  8p … 8p+7: E4M3
==========  ==============================================================================================

Scales are ``[tiles, N, groups of a tile]``. ``scaling`` is "post" (bfloat16 or float32, applied to the sums of a
group), "mx" and "nv" (bytes that keep the product with the levels exact in bfloat16, see ``kernels.decode``), or "row":
only the float32 ``row_scale [N]``, which every weight has and which holds tensor scales and powers of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from qcompile.errors import InternalError, TargetError
from qcompile.formats import Format, Kind, Quantized, ScaleType
from qcompile.formats.catalogue import AnyFormat
from qcompile.formats.rounding import decode_element
from qcompile.formats.scales import scale_code

__all__ = ["FLOAT_BITS", "checked", "numpy_of", "pack_planes", "tiled"]

#: Where plane p of a word keeps (sign, the two exponent bits, mantissa) of an E2M1 code.
FLOAT_BITS = ((15, 8, 7, 6), (12, 5, 4, 3), (9, 2, 1, 0), (14, 13, 11, 10))
_WIDEST = 64  # columns of a plane
_NV_SHIFT, _MX_TOP = 10, 253


class _InFormat(Protocol):
    """A weight in any format."""

    @property
    def format(self) -> AnyFormat:
        """The format."""


def checked(q: _InFormat) -> Quantized:
    """The weight, if some kernel decodes it.

    Raises:
        TargetError: if not.
    """
    if not isinstance(q, Quantized) or not _decoded(q.format) or len(q.shape) != 2 or q.axis != 1:
        raise TargetError(f"gpu: no kernel decodes a weight in '{q.format.name}'; block formats of 4 and 8 bits work")
    if not q.scales.isfinite().all():
        raise TargetError(f"gpu: a weight in '{q.format.name}' has scales that are not finite")
    return q


def _decoded(fmt: Format) -> bool:
    return fmt.bits in (4, 8) and fmt.element.name not in ("e5m2",)


def _zero_points(q: Quantized) -> torch.Tensor:
    if q.zero_points is None:
        raise InternalError(f"a weight in '{q.format.name}' has no zero points")
    return q.zero_points


def pack_planes(weights: Sequence[Quantized], plane: int | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and layout of weights of one format, one after the other along N; ``plane`` overrides its width."""
    fmt, size = weights[0].format, weights[0].shape[1]
    scaling, planes = _scaling(fmt), 4 if fmt.bits == 4 else 2
    plane = plane or _plane(fmt, size, scaling, planes)
    tile = plane * planes
    tiles = -(-size // tile)
    codes = torch.cat([_offset_codes(q) for q in weights])
    tensors = {"words": _words(_padded(codes, tiles * tile, _padding(fmt)), fmt, planes, plane)}
    group = tile if scaling == "row" else min(fmt.group or tile, tile)
    row_scale = torch.cat([_row_scale(q, scaling) for q in weights])
    if scaling != "row":
        tensors["scales"], factor = _stored_scales(torch.cat([_scales(q, scaling) for q in weights]), fmt, scaling)
        row_scale = row_scale * factor
        tensors["scales"] = tiled(tensors["scales"], fmt.group or size, group, tiles, tile)
    if fmt.zero_point:
        zeros = torch.cat([_zero_points(q) for q in weights])
        tensors["zeros"] = tiled(zeros, fmt.group or size, group, tiles, tile)
    if _codes(fmt) == "table":
        tensors["table"] = _levels(fmt)
    stored = "bf16" if tensors.get("scales", row_scale).dtype is torch.bfloat16 else ""
    tensors["row_scale"] = row_scale
    meta = {"K": size, "N": len(codes), "format": fmt.name, "layout": "planes", "codes": _codes(fmt), "plane": plane,
            "tile": tile, "tile_group": group, "scaling": scaling, "scales": stored,
            "zeros": fmt.zero_point}  # fmt: skip
    return {name: numpy_of(value) for name, value in tensors.items()}, meta


def _codes(fmt: Format) -> str:
    if fmt.bits == 8:
        return "byte-float" if fmt.element.kind is Kind.FLOAT else "byte-int"
    if fmt.element.kind is Kind.INTEGER:
        return "int"
    exact = fmt.element.name == "e2m1" and fmt.scale in (ScaleType.E8M0, ScaleType.E4M3) and fmt.group is not None
    return "float" if exact else "table"


def _scaling(fmt: Format) -> str:
    if _codes(fmt) == "float":
        return "mx" if fmt.scale is ScaleType.E8M0 else "nv"
    return "row" if fmt.group is None and not fmt.zero_point else "post"


def _plane(fmt: Format, size: int, scaling: str, planes: int) -> int:
    """Columns of a plane: no more than a group where scales are applied to sums, and little padding."""
    widest = _WIDEST if size % (_WIDEST * planes) == 0 or size >= 4096 else _WIDEST // 2
    if scaling != "post" or fmt.group is None:
        return widest
    if fmt.group < 16 or fmt.group & (fmt.group - 1):
        raise TargetError(f"gpu: no kernel for groups of {fmt.group} in '{fmt.name}': powers of two from 16 on work")
    return min(widest, fmt.group)


def _offset_codes(q: Quantized) -> Tensor:
    if q.format.element.kind is Kind.INTEGER and q.format.element.levels[0] < 0:
        return q.codes ^ (1 << (q.format.bits - 1))  # two's complement to offset binary
    return q.codes


def _padding(fmt: Format) -> int:
    return 1 << (fmt.bits - 1) if fmt.element.kind is Kind.INTEGER and fmt.element.levels[0] < 0 else 0


def _padded(codes: Tensor, width: int, value: int) -> Tensor:
    codes = codes[:, :width]
    return torch.nn.functional.pad(codes, (0, width - codes.shape[1]), value=value)


def _words(codes: Tensor, fmt: Format, planes: int, plane: int) -> Tensor:
    """Codes ``[N, tiles · planes · plane]`` as words ``[tiles, N, plane]``."""
    parts = codes.view(len(codes), -1, planes, plane).int()
    words = torch.zeros(len(codes), parts.shape[1], plane, dtype=torch.int32)
    for p in range(planes):
        code = parts[:, :, p]
        if _codes(fmt) == "float":
            for source, target in zip((3, 2, 1, 0), FLOAT_BITS[p], strict=True):
                words |= ((code >> source) & 1) << target
        else:
            words |= code << (p * fmt.bits)
    return words.to(torch.int16).permute(1, 0, 2).contiguous()


# ---- scales ------------------------------------------------------------------------------------------------------


def _row_scale(q: Quantized, scaling: str) -> Tensor:
    """float32 ``[N]``: what is common to a row."""
    step = q.format.element.step if q.format.element.kind is Kind.INTEGER else 1.0
    if scaling == "row":
        return q.all_scales.effective[:, 0] * step
    if q.tensor_scale is None or scaling == "post":
        return torch.full((q.shape[0],), step)
    return q.tensor_scale.expand(q.shape[0]).clone()


def _scales(q: Quantized, scaling: str) -> Tensor:
    return q.all_scales.effective if scaling == "post" else q.scales


def _stored_scales(scales: Tensor, fmt: Format, scaling: str) -> tuple[Tensor, float]:
    """As the kernels read them, and the factor that the row scales take over."""
    if scaling == "post":
        exact = fmt.scale is ScaleType.BF16 and fmt.tensor_scale is None
        return (scales.bfloat16() if exact else scales), 1.0
    if scaling == "mx":
        code = scale_code(scales, ScaleType.E8M0).int()
        top = int(code.max()) if code.numel() else 127
        return (code - top + _MX_TOP).clamp(0, 255).to(torch.uint8), 2.0 ** (top - 127)
    bits = scales.view(torch.int32)
    code = (bits >> 20) - ((127 - _NV_SHIFT) << 3)  # E4M3 has three bits of mantissa and here no subnormals
    return torch.where(scales == 0, 0, code).to(torch.uint8), 2.0**_NV_SHIFT


def tiled(values: Tensor, group: int, tile_group: int, tiles: int, tile: int) -> Tensor:
    """Values of groups ``[N, groups]`` as ``[tiles, N, groups of a tile]``, a long group's in each of its tiles."""
    values = values.repeat_interleave(max(1, -(-group // tile_group)), 1)
    per = tile // tile_group
    values = torch.nn.functional.pad(values[:, : tiles * per], (0, max(0, tiles * per - values.shape[1])))
    return values.view(len(values), tiles, per).permute(1, 0, 2).contiguous()


def _levels(fmt: Format) -> Tensor:
    return decode_element(torch.arange(16, dtype=torch.uint8), fmt.element)


def numpy_of(value: Tensor) -> np.ndarray:
    return (value.view(torch.int16) if value.dtype is torch.bfloat16 else value).contiguous().numpy()
