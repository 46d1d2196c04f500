"""Notes that the steps of an export leave: their progress, and everything that they left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["CONTEST", 
    "AS_ON_ENGINE", "FITTED_TRANSFORM", "FLOAT_ON_ENGINE", "LEARNING", "OF_EACH", "ON_ENGINE", "Decline", "Declined",
    "TRANSFORMS", "Progress",
]  # fmt: skip

#: Work that learns from data, by the words in which it is declined: where the data does not bear it, it is left out.
CONTEST = "trying the choice out beside simpler ones"
TRANSFORMS = "transforms where ranges are static"
FITTED_TRANSFORM, LEARNING = "a transform fitted to its input", "transforms, and rounding by what the data teaches"

#: Behind the title of a method of rounding that is declined for matrices of a stack.
OF_EACH = " of every matrix"

#: Work that falls back on a runtime, and a comparison that failed, by the words in which they are declined.
ON_ENGINE, FLOAT_ON_ENGINE = "measuring on the engine", "running the float model on the engine"
AS_ON_ENGINE = "computing what the engine does"

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
