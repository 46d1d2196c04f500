"""Distances between values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompile.run.sequences import elements, tensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DIGITS", "compare", "float_tensors", "number", "relative_l2"]

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


def float_tensors(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """The floating-point numbers among some arrays and tensors, as tensors of torch; sequences by element."""
    import torch

    found = {}
    for name, value in elements(values).items():
        if not isinstance(value, torch.Tensor) and np.issubdtype((array := np.asarray(value)).dtype, np.floating):
            value = torch.from_numpy(np.require(array, requirements=["C", "W"]))
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            found[name] = value
    return found


def relative_l2(reference: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The first of ``compare``'s results, of what ``float_tensors`` returns, computed where the reference is."""
    import torch

    if reference.keys() != other.keys():  # sequences of another length
        return math.inf
    worst = 0.0
    for name, want in reference.items():
        have, finite = other[name].to(want.device), want.isfinite()
        if have.shape != want.shape or not torch.equal(finite, have.isfinite()):
            return math.inf
        if not finite.all():
            if not torch.equal(want[~finite].nan_to_num(), have[~finite].nan_to_num()):
                return math.inf
            want, have = want[finite], have[finite]
        norm, error = (float(torch.linalg.vector_norm(x, dtype=torch.float64)) for x in (want, have - want))
        worst = max(worst, error / norm if norm else error)
    return worst


def number(value: float | None) -> float | None:
    """A measurement as it is written down: a few digits; ``None`` for infinity and NaN."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")
