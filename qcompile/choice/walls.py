"""Boundaries in a decision: where two spaces may have bases that differ, at the price of an online transform."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompile.analysis.axes import AxisNode
from qcompile.analysis.boundaries import Boundary, boundaries, sides_of
from qcompile.analysis.folding import axis_transform
from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Analysis
from qcompile.choice.candidates import LEAST_GAIN
from qcompile.choice.joint import Wall
from qcompile.choice.labels import Labels
from qcompile.choice.online import Online

if TYPE_CHECKING:
    from qcompile.transforms import Transform

__all__ = ["Walls"]


@dataclass(frozen=True)
class Walls:
    """The boundaries of a graph, between the labels of its spaces.

    Args:
        labels: the transforms that may fold, by space.
        number: of each space in the problem.
    """

    analysis: Analysis
    online: Online
    labels: Mapping[AxisNode, Labels]
    number: Mapping[AxisNode, int]

    def found(self) -> list[tuple[Boundary, Wall]]:
        """Where two spaces meet that may have bases that differ, at the price of an online transform."""
        found = []
        for wall in boundaries(self.analysis):
            for before, after in sides_of(self.analysis, wall):
                sides = [self.number.get(node) if node is not None else None for node in (before, after)]
                if sides[0] is not None or sides[1] is not None:
                    alike = frozenset() if None in sides else self._alike(before, after)
                    found.append((wall, Wall(sides[0], sides[1], self._price(wall), alike)))
        return found

    def _alike(self, before: AxisNode | None, after: AxisNode | None) -> frozenset[tuple[int, int]]:
        """The pairs of labels that are one transform."""
        if before is None or after is None:
            return frozenset()
        one, other = ([*self.labels[node].transforms.values()] for node in (before, after))
        return frozenset((i, j) for i, a in enumerate(one) for j, b in enumerate(other) if a is b)

    def _of_sides(self, wall: Boundary) -> list[AxisNode]:
        leaves = [leaf.node for side in (wall.before, wall.after) for leaf in self.analysis.axes.leaves(side)]
        return [node for node in leaves if node in self.labels]

    def _readers(self, wall: Boundary) -> list[Siblings]:
        return [group for node in self._of_sides(wall) for group in self.labels[node].readers]

    def fraction(self, wall: Boundary) -> float:
        """The arithmetic of an online transform at a boundary, relative to that of the sites of its spaces."""
        work, dearest = sum(group.flops for group in self._readers(wall)), self._dearest(wall)
        return 0.0 if dearest is None or not work else dearest.flops / work

    def _dearest(self, wall: Boundary) -> Transform | None:
        """The transform of most arithmetic that a boundary may need."""
        made = [t for node in self._of_sides(wall) for t in self.labels[node].transforms.values() if t is not None]
        return max(made, key=lambda transform: transform.flops, default=None)

    def _price(self, wall: Boundary) -> float:
        if self.online.forced:
            return 1.0
        lost = sum(self.labels[node].error for node in set(self._of_sides(wall)))
        dearest, readers = self._dearest(wall), self._readers(wall)
        if dearest is None or not readers:
            return LEAST_GAIN * lost
        return self.online.price.of(readers, dearest, lost) + LEAST_GAIN * lost

    def between(self, wall: Boundary, offline: Mapping[AxisNode, Transform]) -> Transform | None:
        """The transform from the basis before a boundary to the one behind it, ``None`` if they are the same."""
        from qcompile.transforms import Compose

        before, after = (axis_transform(self.analysis.axes, side, offline) for side in (wall.before, wall.after))
        if before is None or before is after:
            return None if before is after else after
        return before.inverse() if after is None else Compose((before.inverse(), after))
