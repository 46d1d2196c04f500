"""Evidence that something errs less, from sequences that it was not fitted on."""

from __future__ import annotations

import numpy as np

__all__ = ["CONFIDENCE", "errs_less"]

#: How sure it must be that what was fitted errs less than what was not, before it is taken.
CONFIDENCE = 0.95


def errs_less(ours: np.ndarray, theirs: np.ndarray, confidence: float = CONFIDENCE) -> bool:
    """Whether errors are lower than others, in sum and beyond what their spread over sequences explains.

    That is a one-sided t-test on the logarithms of their ratios: two sequences must agree closely, thirty need not.

    Args:
        ours, theirs: ``[sequences]``, squared errors on the same sequences. Less than two are no evidence.
        confidence: how sure it must be.
    """
    from scipy.special import stdtrit

    count = len(ours)
    if count < 2 or not ours.sum() < theirs.sum():
        return False
    least = 1e-12 * theirs.mean()
    ratios = np.log((ours + least) / (theirs + least))
    error = ratios.std(ddof=1) / np.sqrt(count)
    return bool(ratios.mean() + stdtrit(count - 1, confidence) * error < 0)
