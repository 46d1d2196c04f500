"""The Pareto front: the loss under each budget, from one calibration."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from qcompile.choice.decision import Posed
from qcompile.choice.placement import Placement
from qcompile.choice.question import Table
from qcompile.errors import InputError

__all__ = ["Point", "bounds_of", "front"]


@dataclass(frozen=True)
class Point:
    """A choice under budgets.

    Args:
        bounds: the budgets.
        spent: the cost in every unit.
        loss: the predicted growth of the metric.
        gap: the relative gap that the solver leaves, 0 if proven optimal.
        formats: sites by the scheme that they would have.
        offline, online: the numbers of spaces that change basis, and of transforms that stay in the graph.
        missed: why the budgets cannot be met, which leaves the rest empty.
    """

    bounds: Mapping[str, float]
    spent: Mapping[str, float]
    loss: float
    gap: float
    formats: Mapping[str, int]
    offline: int = 0
    online: int = 0
    missed: str | None = None


def bounds_of(ranges: Mapping[str, tuple[float, float]], points: int) -> Iterator[dict[str, float]]:
    """Budgets evenly spread over ranges, the tightest first: of several ranges, all that go together.

    Args:
        ranges: by unit, the tightest budget and the loosest; one and the same for one that stays.
        points: for each range.
    """
    spread = [np.linspace(*ends, points if ends[0] < ends[1] else 1) for ends in ranges.values()]
    for taken in itertools.product(*spread):
        yield dict(zip(ranges, map(float, taken), strict=True))


def front(posed: Posed, bounds: Iterable[Mapping[str, float]]) -> list[Point]:
    """The choice under each of some budgets."""
    return [_point(posed, budgets) for budgets in bounds]


def _point(posed: Posed, budgets: Mapping[str, float]) -> Point:
    placement = Placement({}, {})
    try:
        decided = posed.decide(placement, budgets)
    except InputError as error:
        return Point(budgets, {}, float("nan"), float("nan"), {}, missed=str(error))
    names = posed.graph.asked.names
    formats: Counter[str] = Counter()
    for item, index in decided.schemes.items():
        formats[names[index]] += 1 if isinstance(item, Table) else len(item.sites)
    online = len(placement.online) + len(placement.boundaries)
    return Point(
        budgets, posed.spent(decided), posed.loss(decided, placement), decided.assignment.gap, dict(formats),
        len(placement.offline) + len(placement.behind), online,
    )  # fmt: skip
