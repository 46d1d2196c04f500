"""Times as sums of work: so many calls, bytes, multiply-adds and elements, each of which takes a time of its own.

The coefficients are fitted to measured times by non-negative least squares of relative errors, so that a time of
microseconds counts as much as one of milliseconds, and no work ever makes anything quicker.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["CACHED", "CORE", "DIGITS", "Work", "added", "beyond", "elements", "fit", "seconds"]

#: Amounts of work by name, or seconds that one of each takes.
Work = Mapping[str, float]

#: Elements of a tensor that stay in the cache of a core, a quarter of a megabyte: the others come from further away.
NEAR = float(1 << 16)

#: Bytes of weights that stay from one run of a graph to the next in the cache of a core, and in those of a processor.
CORE, CACHED = 3.0 * (1 << 18), float(16 << 20)

#: Significant digits of coefficients that are kept.
DIGITS = 4


def seconds(coefficients: Work, work: Work) -> float:
    """The time of some work, in seconds."""
    return math.fsum(each * work.get(name, 0.0) for name, each in coefficients.items())


def elements(name: str, count: float) -> dict[str, float]:
    """So many elements that are read or written, and those of them that no near cache holds."""
    return {name: count, f"far_{name}": max(count - NEAR, 0.0)}


def beyond(stored: float, cache: float) -> float:
    """The share of so many bytes that a cache does not hold."""
    return max(1 - cache / stored, 0.0) if stored else 0.0


def added(works: Iterable[Work]) -> dict[str, float]:
    """All of some work."""
    total: dict[str, float] = {}
    for work in works:
        for name, amount in work.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def fit(measured: Sequence[tuple[Work, float]]) -> tuple[dict[str, float], float]:
    """Coefficients in seconds, and the mean relative error that they leave.

    Args:
        measured: work and the seconds that it took.
    """
    import numpy as np
    from scipy.optimize import nnls

    names = list(dict.fromkeys(name for work, _ in measured for name in work))
    taken = np.array([time for _, time in measured])
    amounts = np.array([[work.get(name, 0.0) for name in names] for work, _ in measured]) / taken[:, None]
    scales = np.maximum(amounts.max(0), 1e-300)  # calls and multiply-adds are nine orders apart
    found, _ = nnls(amounts / scales, np.ones(len(taken)))
    left = float(np.abs(amounts / scales @ found - 1).mean())
    return {name: float(f"{each:.{DIGITS}g}") for name, each in zip(names, found / scales, strict=True)}, left
