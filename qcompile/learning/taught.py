"""The outcome of learning, as manifests state it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Taught"]


@dataclass(frozen=True)
class Taught:
    """The outcome of learning one part along gradients.

    Args:
        part: one of ``settings.PARTS``.
        parameters: numbers that were free to move.
        steps: gradients that were followed.
        best: the step whose parameters departed least on held-out sequences; 0 for the start.
        sequences: of those.
        before, after: mean departures there, at the start and at that step.
        kept: whether the result was taken.
        changed: of codes, how many differ from those before.
    """

    part: str
    parameters: int
    steps: int
    best: int
    sequences: int
    before: float
    after: float
    kept: bool
    changed: int | None = None
