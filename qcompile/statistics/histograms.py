"""The values of a tensor over all of some data, as a histogram that widens as larger ones come in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["Histogram"]

#: Bins of a histogram: a range that clips at one in two hundred of the largest value still has steps of a bin each.
BINS = 1 << 15


class Histogram:
    """Counts of values in equal bins between ``-limit`` and ``limit``, a power of two that doubles when it must.

    Its smallest and its largest value are exact. Data in another order give the same counts.
    """

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self.finite = True
        self.counts: np.ndarray = np.zeros(BINS, np.int64)
        self._limit = 0.0

    def add(self, x: torch.Tensor) -> None:
        """Take values in, of any shape."""
        import torch

        if not x.numel():
            return
        x = x.detach().float()
        low, high = float(x.min()), float(x.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            self.finite = False
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        if (largest := max(-low, high)) == 0.0:
            self.counts[BINS // 2] += x.numel()  # where zero falls, whatever the limit
            return
        self._widen(2.0 ** math.frexp(largest)[1])
        places = (x.flatten() * (BINS / 2 / self._limit)).floor_().long().add_(BINS // 2)  # exact: powers of two
        self.counts += torch.bincount(places, minlength=BINS).cpu().numpy()

    def _widen(self, limit: float) -> None:
        """Let two bins become one until values of that size have a place."""
        if self._limit == 0.0:
            self._limit = limit
        while self._limit < limit:
            wide = np.zeros_like(self.counts)
            wide[BINS // 4 : -BINS // 4] = self.counts.reshape(-1, 2).sum(1)
            self.counts, self._limit = wide, 2 * self._limit

    @property
    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """The middles of the bins that hold anything, and how many values each holds; ends are exact."""
        (places,) = self.counts.nonzero()
        middles = ((places + 0.5) * (2 / BINS) - 1) * self._limit
        return np.clip(middles, self.low, self.high), self.counts[places]
