"""Formats of caches as the kernels of attention read them."""

from __future__ import annotations

from qcompile.backends.gpu.kernels.cache_writing import CacheLayout
from qcompile.errors import TargetError
from qcompile.formats.cache_format import CacheFormat

__all__ = ["cache_layout"]


def cache_layout(fmt: CacheFormat, features: int) -> CacheLayout:
    """The layout of a cache in a format, to the bit that of ``CacheFormat.encode``.

    Args:
        fmt: with scales that come with tokens, and at most two codes in a byte.
        features: of a head.

    Raises:
        TargetError: if the kernels do not read the format, or heads of that size.
    """
    if (reason := fmt.fits(features)) is not None:
        raise TargetError(f"cache format '{fmt.name}': {reason}")
    if not fmt.integers or fmt.static or fmt.per_byte > 2 or fmt.keeps:
        raise TargetError(
            f"cache format '{fmt.name}': attention on a GPU reads one or two integers in a byte, with scales of tokens"
        )
    width = features // fmt.per_byte
    if features & (features - 1) or width < 16:
        raise TargetError(f"cache format '{fmt.name}': {features} features are no power of two that fills the tiles")
    bits = fmt.halves or (fmt.bits,) * fmt.per_byte
    return CacheLayout(bits, width, fmt.groups(features), fmt.offset, fmt.halves is not None)
