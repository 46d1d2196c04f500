"""The processes that share an export, each on a device of its own: every one runs it, but for shares of the work.

What one computes, all have afterwards, in the order in which one alone would have it: results by item, and sums over
fixed lanes of batches. So no byte of an artifact says how many there were. One process alone is a group as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ALONE", "LANES", "Group", "LaneSum", "lane_of"]

#: Parts of the batches whose sums are added up in order, whoever computes them: more processes share no sum.
LANES = 8

T = TypeVar("T")
R = TypeVar("R")


def lane_of(number: int, count: int) -> int:
    """The lane of a batch, by its number of so many: lanes are as long as each other, but for one."""
    return number * LANES // count


class Group:
    """One process alone; ``joined.Joined`` has others beside it.

    Whoever is given a group calls its methods in the same order in every process.
    """

    #: The number of this process, and how many there are.
    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def gathered(self, work: Callable[[], T]) -> list[T]:
        """The result of every process, in their order.

        Raises:
            Exception: whatever the work raises in one of them, in all.
        """
        return [work()]

    def together(self) -> AbstractContextManager[None]:
        """A piece of work that fails in all processes if it fails in one."""
        return nullcontext()

    def folded(self, total: Tensor | None, lanes: Sequence[Tensor]) -> Tensor | None:
        """The sum, in float64 and in order, of the lanes of all processes; ``None`` where there is none.

        Args:
            total: the sum of the lanes of the first process, which it may add up as they come.
            lanes: those of this one, if it is another.
        """
        return total

    # -- made of these -------------------------------------------------------------------------------------------------

    def share(self, count: int) -> range:
        """The numbers of the items that this process takes, of so many."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def lanes(self, count: int) -> list[int]:
        """The numbers of the batches that this process takes, of so many whose sums go in lanes."""
        own = self.share(LANES)
        return [number for number in range(count) if lane_of(number, count) in own]

    def spread(self, items: Sequence[T], work: Callable[[Sequence[T]], Iterable[R]]) -> list[R]:
        """A result for each item, in order: every process works on some of them.

        Args:
            work: gives a result for each of the items that it gets.
        """
        parts = self.gathered(lambda: list(work([items[number] for number in self.share(len(items))])))
        return [result for part in parts for result in part]

    def dealt(self, costs: Sequence[float], make: Callable[[int], R]) -> list[R]:
        """A result for each item, by its number: each process makes some, so that all take about as long."""
        owners = _dealt(costs, self.size)
        mine = [number for number, owner in enumerate(owners) if owner == self.rank]
        parts = self.gathered(lambda: {number: make(number) for number in mine})
        return [parts[owner][number] for number, owner in enumerate(owners)]

    def by_first(self, make: Callable[[], R]) -> R:
        """A result that the first process alone makes."""
        return self.gathered(lambda: make() if self.first else None)[0]  # type: ignore[return-value]


def _dealt(costs: Sequence[float], size: int) -> list[int]:
    """The process for each item: the costliest come first, each to whoever has least so far."""
    loads, owners = [0.0] * size, [0] * len(costs)
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        owner = loads.index(min(loads))
        loads[owner] += costs[number]
        owners[number] = owner
    return owners


ALONE = Group()


class LaneSum:
    """A sum of tensors in float64: first within lanes, then over these in their order.

    Args:
        group: the processes that have the lanes.
    """

    def __init__(self, group: Group = ALONE) -> None:
        self._group, self._at = group, -1
        self._lane: Tensor | None = None
        self._total: Tensor | None = None
        self._closed: list[Tensor] = []

    def add(self, part: Tensor, lane: int | None = None) -> None:
        """Add a part, which is kept; those of a lane come one behind another, and without one each is by itself."""
        if self._lane is None or lane is None or lane != self._at:
            self._close()
            self._lane, self._at = part, -1 if lane is None else lane
        else:
            self._lane = self._lane.double().add_(part)

    def _close(self) -> None:
        """Add the lane to the sum where those before it are known."""
        if self._lane is None:
            return
        if not self._group.first:
            self._closed.append(self._lane)
        elif self._total is None:
            self._total = self._lane.double()
        else:
            self._total = self._total.to(self._lane.device).add_(self._lane)
        self._lane = None

    @property
    def own(self) -> Tensor | None:
        """The sum so far of one process alone."""
        self._close()
        return self._total

    def joined(self) -> Tensor | None:
        """The sum of all processes, to which nothing is added any more; ``None`` of nothing."""
        self._close()
        return self._group.folded(self._total, self._closed)
