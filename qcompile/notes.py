"""Notes that the steps of an export leave: their progress, and everything that they left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["FITTED", "FITTED_TRANSFORM", "GPTQ", "GPTQ_OF_EACH", "LEARNING", "WEIGHTED_SEARCH", "Declined", "Progress"]

#: Work that learns from data, by the words in which it is declined: where the data does not bear it, it is left out.
GPTQ, GPTQ_OF_EACH, WEIGHTED_SEARCH = "GPTQ", "GPTQ of every matrix", "weighted search"
FITTED_TRANSFORM, LEARNING = "a transform fitted to its input", "transforms, and rounding by what the data teaches"
FITTED = (GPTQ, GPTQ_OF_EACH, WEIGHTED_SEARCH, FITTED_TRANSFORM, LEARNING)

#: Called with a step, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]

#: Called with an operator or value, what was not done to it, and why.
Decline = Callable[[str, str, str], None]


@dataclass(frozen=True)
class Declined:
    """Something that was looked at and left alone.

    Args:
        site: the operator or value.
        what: what was not done to it.
        reason: why, in one sentence.
    """

    site: str
    what: str
    reason: str
