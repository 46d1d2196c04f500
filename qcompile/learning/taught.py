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
        redrawn: whether gradients were taken on sequences whose tokens were drawn anew, in part, from the float model.
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
    redrawn: bool
    changed: int | None = None
