"""Caches of tokens as directions: a length in float16, and the nearest levels of what is left.

Rotated, the features of a token over its length are as a normal distribution has them, and the levels are those of
least squared error: TurboQuant (arXiv:2504.19874), which keeps the length, and EDEN (arXiv:2108.08842), which keeps
the factor with which the levels come closest to the token. No data is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from qcompile.errors import InputError
from qcompile.formats.cache_format import CacheFormat, half

__all__ = ["UnitCacheFormat", "tree_sum"]


def tree_sum(x: np.ndarray) -> np.ndarray:
    """Sums along the last axis, in the order that graphs have them as well: halves, with an odd last one by itself."""
    while x.shape[-1] > 1:
        middle = x.shape[-1] // 2
        joined = x[..., :middle] + x[..., middle : 2 * middle]
        x = np.concatenate([joined, x[..., 2 * middle :]], -1)
    return x[..., 0]


@lru_cache
def _levels(bits: int) -> np.ndarray:
    from qcompile.formats.grids.lloyd_max import lloyd_max

    return np.array(lloyd_max(2**bits).levels, np.float32)


@dataclass(frozen=True)
class UnitCacheFormat(CacheFormat):
    """Tokens as a factor in float16 and levels of a normal distribution.

    Args:
        nearest: whether the factor is the one of least squared error (EDEN), or the token's length (TurboQuant).
    """

    nearest: bool = True

    @property
    def integers(self) -> bool:
        """No codes are whole numbers here."""
        return False

    @property
    def levels(self) -> np.ndarray:
        """The levels of least squared error, in increasing order, float32 ``[2^bits]``."""
        return _levels(self.bits)

    @property
    def borders(self) -> np.ndarray:
        """Between neighbouring levels, rounded down: a tie goes to the lower one; float32."""
        exact = (self.levels[:-1].astype(np.float64) + self.levels[1:]) / 2
        found = exact.astype(np.float32)
        return np.where(found > exact, np.nextafter(found, np.float32(-np.inf)), found)

    @property
    def stored(self) -> np.dtype:
        """Bytes."""
        return np.dtype(np.uint8)

    def encode(self, x: np.ndarray, scale: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Packed codes ``[batch, heads, length, bytes]`` of float32, and the factor of each token and head."""
        x = np.asarray(x, np.float32)
        length = np.sqrt(tree_sum(x * x) * np.float32(1 / x.shape[-1]))
        y = x / np.where(length == 0, np.float32(1), length)[..., None]
        codes = (y[..., None] > self.borders).sum(-1)
        if self.nearest:
            levels = self.levels[codes]
            factor = tree_sum(x * levels) / tree_sum(levels * levels)
        else:
            factor = length
        return self._in_bytes(codes), half(factor)[..., None].astype(np.float16)

    def decode(self, codes: np.ndarray, scales: np.ndarray | None, scale: np.ndarray | None = None) -> np.ndarray:
        """The float32 that codes and factors stand for."""
        if scales is None:
            raise InputError(f"cache format '{self.name}' needs scales")
        return self.levels[self._out_of_bytes(codes)] * scales.astype(np.float32)
