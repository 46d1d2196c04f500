"""The statistics of one value, and how they are taken as its rows come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompile.analysis.patches import Reading
from qcompile.analysis.stacks import Route
from qcompile.group.group import ALONE, Group
from qcompile.statistics.second_moment import SecondMoment

if TYPE_CHECKING:
    import torch

__all__ = ["Collected", "Routed", "Seen", "Statistics", "spread"]

#: Rows of each site input that are kept.
SAMPLE_ROWS = 512


@dataclass(frozen=True)
class Routed:
    """Rows of one value and the experts that multiply them.

    Args:
        parts: rows ``[rows, size]`` float32 and their owners ``[rows, choices]``, batch by batch.
        held_out: the same for the sequences that are held out.
    """

    parts: Sequence[tuple[np.ndarray, np.ndarray]]
    held_out: Sequence[tuple[np.ndarray, np.ndarray]] = ()

    def of(self, expert: int) -> Statistics | None:
        """The statistics of the rows that one expert saw; ``None`` if it saw none."""
        import torch

        own, held_out = ([x[(o == expert).any(1)] for x, o in parts] for parts in (self.parts, self.held_out))
        moment = SecondMoment()
        for part in own:
            moment.add(torch.from_numpy(part))
        if not moment.rows:
            return None
        sample = np.concatenate(own)[:SAMPLE_ROWS]
        held_out = [rows for rows in held_out if len(rows)]
        return Statistics(moment.array, sample, moment.rows, held_out, moment.effective)


@dataclass(frozen=True)
class Statistics:
    """The statistics of one site input of ``size`` features.

    Args:
        second_moment: ``E[x xᵀ]``, ``[size, size]`` float64, or float32 where it is large.
        sample: ``[rows, size]`` float32, of the rows that the second moment has seen.
        rows: how many these were.
        held_out: ``[rows, size]`` float32 for each sequence that it has not seen.
        effective: how many independent rows they are worth; see ``SecondMoment``.
        batches: how many of the data they come from.
        sequences: to how many the data was thinned; 0 for all.
        routed: the rows by how stacks of experts share them.
    """

    second_moment: np.ndarray
    sample: np.ndarray
    rows: int
    held_out: Sequence[np.ndarray] = ()
    effective: float = 0.0
    batches: int = 0
    sequences: int = 0
    routed: Mapping[Route, Routed] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """A value of one batch.

    Args:
        key: of the batch: negative for what is held out.
        count: its rows.
        rows: those that are kept, float32; ``None`` where rows are counted alone.
        finite: whether all of it is.
        shared: all rows, float32, and the shape of the value, where experts share them.
    """

    key: int
    count: int
    rows: Any = None
    finite: torch.Tensor | bool = True
    shared: tuple[np.ndarray, tuple[int, ...]] | None = None


class Collected:
    """The statistics of one value, as its rows come in.

    Args:
        reading: how its rows are read.
        routes: how experts share its rows.
        most: rows that are learned from.
        batches: of these, as far as it is known.
        moments: whether the second moment is wanted.
        wanted: whether anything is; else rows are counted alone.
        group: the processes that share the batches.
    """

    def __init__(
        self, reading: Reading, routes: Sequence[Route], most: int, batches: float, *, moments: bool, wanted: bool,
        group: Group = ALONE,
    ) -> None:  # fmt: skip
        self.reading, self.routes, self.wanted = reading, routes, wanted
        self.most, self.batches, self.moments, self.moment = most, batches, moments, SecondMoment(group)
        self.rows = self.taken = self.judged = 0
        self.sample: list[torch.Tensor] = []
        self.held_out: list[np.ndarray] = []
        self._shared: list[tuple[int, np.ndarray, tuple[int, ...]]] = []  # batches: their rows, and their shape
        self._new: list[Seen] = []

    def see(self, value: torch.Tensor, key: int, kept: int, lane: int) -> None:
        """Take a value in, which counts when it is settled.

        Args:
            key: of its batch: negative for what is held out.
            kept: rows to keep of it if it is held out, else 0.
            lane: of its batch, where its moment is summed up.
        """
        x = self.reading.rows(value)
        if not self.wanted:
            self._new.append(Seen(key, len(x)))
            return
        finite = x.isfinite().all()
        count = kept or int(len(x) * SAMPLE_ROWS / max(min(self.most, len(x) * self.batches), 1))
        if self.moments and not kept:
            self.moment.add(x, lane)
        rows = spread(x, count).float().cpu().clone()
        shared = (x.float().cpu().numpy(), tuple(value.movedim(self.reading.axis, -1).shape)) if self.routes else None
        self._new.append(Seen(key, len(x), rows, finite, shared))

    def seen(self) -> list[Seen]:
        """Whatever this process has taken in since the last time."""
        new, self._new = self._new, []
        return [replace(one, finite=bool(one.finite)) for one in new]

    def settled(self, seen: Sequence[Seen]) -> bool:
        """Count what all processes have taken in, in the order of batches; whether all of it was finite."""
        for one in seen:
            if one.key < 0:
                self.judged += one.count
            if not self.wanted:
                continue
            if one.key < 0:
                self.held_out.append(one.rows.numpy())
            else:
                self.rows, self.taken = self.rows + one.count, self.taken + 1
                self.sample.append(one.rows)
            if one.shared is not None:
                self._shared.append((one.key, *one.shared))
        if self.moments and any(one.key >= 0 for one in seen):
            self.moment.settle()
        return all(one.finite for one in seen)

    def statistics(self, sequences: int, chosen: Mapping[tuple[str, int], np.ndarray]) -> Statistics:
        """The result after the last row of so many sequences, with what looks experts up in each batch."""
        import torch

        return Statistics(
            self.moment.array, torch.cat(self.sample).numpy(), self.rows,
            [rows for rows in self.held_out if len(rows)], self.moment.effective, self.taken, sequences,
            {route: self._routed(route, chosen) for route in self.routes},
        )  # fmt: skip

    def _routed(self, route: Route, chosen: Mapping[tuple[str, int], np.ndarray]) -> Routed:
        parts: tuple[list[tuple[np.ndarray, np.ndarray]], ...] = ([], [])
        for key, x, shape in self._shared:
            looked_up = None if route.indices is None else chosen[route.indices, key]
            parts[key < 0].append((x, route.owners(x.reshape(shape), looked_up)))
        return Routed(*parts)


def spread(x: torch.Tensor, count: int) -> torch.Tensor:
    """A number of rows, but at least one if there is any, evenly spread."""
    import torch

    return x[torch.linspace(0, len(x) - 1, min(max(1, count), len(x))).long().to(x.device)]
