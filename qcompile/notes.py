"""Notes that the steps of an export leave: their progress, and everything that they left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Declined", "Progress"]

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
