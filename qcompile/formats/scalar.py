"""Formats whose codes stand for single values: the ones that kernels and graphs compute with."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

from qcompile.formats.format import Format
from qcompile.formats.structured.family import FamilyFormat
from qcompile.formats.structured.vector import VectorFormat

if TYPE_CHECKING:
    import torch

    from qcompile.formats.catalogue import AnyFormat
    from qcompile.formats.quantizer import Quantized

__all__ = ["Scalar", "is_scalar", "quantize_scalar"]

#: Block formats, those that choose one for each tensor, and grids of one dimension.
Scalar = Format | FamilyFormat | VectorFormat


def is_scalar(fmt: AnyFormat) -> TypeGuard[Scalar]:
    """Whether the codes of a format stand for single values."""
    if isinstance(fmt, VectorFormat):
        return fmt.dimension == 1 and fmt.lattice == "grid" and not fmt.rotated
    return isinstance(fmt, Format | FamilyFormat)


def quantize_scalar(weight: torch.Tensor, fmt: Scalar) -> Quantized:
    """A weight rounded to nearest, in the block format that stands for ``fmt``."""
    from qcompile.formats.quantizer import quantize

    if isinstance(fmt, VectorFormat):
        return quantize(weight, fmt).as_table()
    return quantize(weight, fmt)
