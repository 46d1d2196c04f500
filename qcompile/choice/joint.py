"""One decision: a label for every space, an option for every unit that reads some, of least total loss in all budgets.

A unit's options are grouped by the labels of the spaces that it reads; walls cost where two spaces have labels that
differ. ``solving`` decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qcompile.choice.assignment import Assignment, Option

__all__ = ["Decision", "Joint", "Unit", "Wall"]


@dataclass(frozen=True)
class Unit:
    """A decision that depends on the labels of spaces.

    Args:
        spaces: their numbers.
        options: by the labels of these spaces, the options that there are; units that are tied match them by name.
            An option of one name has one cost, whatever the labels.
    """

    spaces: tuple[int, ...]
    options: Mapping[tuple[int, ...], Sequence[Option]]

    def loss(self, labels: Sequence[int], name: str) -> float:
        """The loss of the option of that name where all spaces have those labels."""
        found = self.options[tuple(labels[space] for space in self.spaces)]
        return next(option.loss for option in found if option.name == name)


@dataclass(frozen=True)
class Wall:
    """A place where two spaces meet.

    Args:
        before, after: their numbers; ``None`` for one that always has label 0.
        cost: of labels that are not ``alike``.
        alike: pairs of labels that are one and the same, besides (0, 0).
    """

    before: int | None
    after: int | None
    cost: float
    alike: frozenset[tuple[int, int]] = frozenset()

    def between(self, a: int, b: int) -> float:
        """The cost of two labels."""
        return 0.0 if (a, b) in self.alike or (a, b) == (0, 0) else self.cost


@dataclass(frozen=True)
class Joint:
    """A problem.

    Args:
        labels: by space, the loss of each of its labels as such.
        units: what reads spaces.
        walls: where spaces meet.
        budgets: the most that may be spent of each cost.
        ties: pairs of units that take options of one name.
    """

    labels: Sequence[Sequence[float]]
    units: Sequence[Unit]
    walls: Sequence[Wall] = ()
    budgets: Mapping[str, float] = field(default_factory=dict)
    ties: Sequence[tuple[int, int]] = ()

    def fixed(self, labels: Sequence[int]) -> float:
        """The loss of a labelling without that of the units."""
        own = math.fsum(losses[label] for losses, label in zip(self.labels, labels, strict=True))
        at = [tuple(0 if s is None else labels[s] for s in (wall.before, wall.after)) for wall in self.walls]
        return own + math.fsum(wall.between(a, b) for wall, (a, b) in zip(self.walls, at, strict=True))


@dataclass(frozen=True)
class Decision:
    """A solution: labels by space, and the options of the units with what they cost.

    Args:
        labels: by space.
        options: by unit.
        assignment: of options, with the whole loss; its gap is that of the whole.
    """

    labels: tuple[int, ...]
    options: tuple[Option, ...]
    assignment: Assignment
