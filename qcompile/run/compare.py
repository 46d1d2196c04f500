"""Distances between values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from qcompile.run.sequences import tensors

__all__ = ["DIGITS", "compare", "number"]

#: Significant digits of the measurements that are written down.
DIGITS = 6


def compare(reference: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, float]:
    """Relative L2 and largest absolute difference, the worst over the outputs that hold floating-point numbers.

    Sequences are compared element by element.
    """
    relative = absolute = 0.0
    wanted, made = tensors(reference), tensors({name: other[name] for name in reference})
    if wanted.keys() != made.keys():  # sequences of another length
        return float("inf"), float("inf")
    for name, want in wanted.items():
        if not np.issubdtype(want.dtype, np.floating):
            continue
        have, finite = made[name], np.isfinite(want)
        if have.shape != want.shape or not _alike(want, have, finite):
            return float("inf"), float("inf")
        if not finite.all():
            want, have = want[finite], have[finite]
        difference = np.subtract(want, have, dtype=np.float64).ravel()
        norm, error = _length(want.ravel()), _length(difference)
        relative = max(relative, error / norm if norm else error)
        absolute = max(absolute, float(np.abs(difference, out=difference).max(initial=0.0)))
    return relative, absolute


def _alike(want: np.ndarray, have: np.ndarray, finite: np.ndarray) -> bool:
    """Whether NaN and each infinity stand at the same places."""
    if not np.array_equal(finite, np.isfinite(have)):
        return False
    return bool(finite.all()) or np.array_equal(want[~finite], have[~finite], equal_nan=True)


def _length(vector: np.ndarray) -> float:
    """The Euclidean norm in float64; not by BLAS, whose threads would wait actively while others want the cores."""
    return math.sqrt(np.einsum("i,i->", vector, vector, dtype=np.float64))


def number(value: float | None) -> float | None:
    """A measurement as it is written down: a few digits; ``None`` for infinity and NaN."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")
