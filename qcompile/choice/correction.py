"""Predicted divergences brought to the level of those that were measured, for a whole model.

Sums of what sites lose are the first term of a series: they hold where errors are small. Above a divergence of some 0.1
they are off by a factor that grows with the divergence, in one direction for a model. Calibration text that a model has
learned lowers all levels. Both leave the order of assignments as it is, and a few that are measured tell both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Correction"]

#: The weight of a slope of 1, which is known beforehand, in squared logarithms of what points are apart.
PRIOR = 1.0


@dataclass(frozen=True)
class Correction:
    """``measured ≈ factor · predicted ^ slope``.

    Args:
        factor: the quotient of both where ``predicted`` is 1.
        slope: 1 where errors add up.
        points: how many assignments it was fitted to.
    """

    factor: float
    slope: float
    points: int

    @staticmethod
    def fitted(pairs: Sequence[tuple[float, float]]) -> Correction | None:
        """The least-squares line through the logarithms of (predicted, measured); ``None`` without a usable pair."""
        usable = [pair for pair in pairs if min(pair) > 0]
        if not usable:
            return None
        x, y = np.log(np.array(usable)).T
        dx, dy = x - x.mean(), y - y.mean()
        slope = 1 + float(dx @ (dy - dx)) / (float(dx @ dx) + PRIOR)
        return Correction(float(np.exp(y.mean() - slope * x.mean())), slope, len(usable))

    def of(self, predicted: float) -> float:
        """The divergence that a prediction stands for."""
        return self.factor * predicted**self.slope if predicted > 0 else 0.0
