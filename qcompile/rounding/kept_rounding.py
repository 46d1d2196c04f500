"""Rounded weights in the folder of ``--work``, and a walk that goes only as far as those that are not there need it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Protocol

import torch

from qcompile.analysis.siblings import Siblings
from qcompile.errors import InputError
from qcompile.formats import Format, Quantized
from qcompile.formats.scalar import Scalar
from qcompile.formats.static import Activation
from qcompile.notes import Decline, Declined
from qcompile.rounding.moments import InputMoments
from qcompile.rounding.sequential import Walk
from qcompile.statistics.collected import Statistics
from qcompile.work import Kept, Work

__all__ = ["Following", "Lesson", "Notes", "kept_rounding", "learned_from"]


class Notes(Protocol):
    """Notes that steps leave, as ``passes.state`` has them."""

    declined: list[Declined]
    notes: dict[str, Any]

    def decline(self, site: str, what: str, reason: str) -> None:
        """Record that something was left alone."""


class Following:
    """A walk that begins when it is asked for, and goes on as far as it is asked to.

    Args:
        begin: gives the walk, whose groups are asked for in its own order.
        decline: told where it cannot go on.
    """

    def __init__(self, begin: Callable[[], Walk], decline: Decline) -> None:
        self._begin, self._decline, self.failed = begin, decline, False
        self._coming: Generator[tuple[Siblings, Walk]] | None = None
        self._at: tuple[Siblings, Walk] | None = None

    def moments(self, group: Siblings, fmt: Activation | None) -> InputMoments | None:
        """Input moments of a group, the sites of all before it being planned; ``None`` where it cannot go so far."""
        if self._coming is None:
            self._coming = self._groups()
        try:
            while not self.failed and (self._at is None or self._at[0] is not group):
                self._at = next(self._coming)
        except InputError as error:
            reason = f"{error}; the other sites learn from the float graph alone"
            self._decline("*", "rounding all sites in the order of the graph", reason)
            self.failed = True
        return None if self.failed or self._at is None else self._at[1].moments(fmt)

    def _groups(self) -> Generator[tuple[Siblings, Walk]]:
        walk = self._begin()
        for group in walk:
            yield group, walk

    def close(self) -> None:
        """End the walk where it is."""
        if self._coming is not None:
            self._coming.close()


@dataclass(frozen=True)
class Lesson:
    """The grounds on which the sites of a group are rounded.

    Args:
        teach: gives what they learn from, by the way in which they read their input; ``None`` for nothing.
        work: about all that this depends on; without a folder where rounding is as quick as reading.
        following: the walk that it comes from, if any.
    """

    teach: Callable[[Activation | None], InputMoments | None]
    work: Work = Work()
    following: Following | None = None

    @property
    def sure(self) -> bool:
        """Whether it would be the same again: a walk may have failed for want of memory."""
        return self.following is None or not self.following.failed


def learned_from(statistics: Mapping[str, Statistics]) -> list[object]:
    """Facts that tell statistics from others of the same graph and data."""
    return [
        [name, own.rows, own.batches, own.sequences, float(own.effective), list(own.second_moment.shape), str(routes)]
        for name, own in sorted(statistics.items())
        for routes in [sorted(map(str, own.routed))]
    ]


def kept_rounding(
    lesson: Lesson, asked: Sequence[str | None], fmt: Scalar, notes: Notes, make: Callable[[], Quantized]
) -> Quantized:
    """A weight as it is rounded, or as it was rounded for the same reasons before.

    Args:
        lesson: what it is rounded by.
        asked: the site, and what is asked of it.
        fmt: the format of the weight; only block formats are kept.
        notes: what ``make`` declines and notes of the site; the same is said again where nothing is made.
        make: rounds it.
    """
    if not isinstance(fmt, Format):
        return make()
    key, site = lesson.work.key(list(asked)), str(asked[0])
    found = lesson.work.find("roundings", key)
    if found is not None:
        for entry in found.facts["declined"]:
            notes.decline(*entry)
        if found.facts["held_out"] is not None:
            notes.notes.setdefault("held_out", {})[site] = found.facts["held_out"]
        return _rounded(found, fmt)
    before = len(notes.declined)
    made = make()
    if lesson.sure:
        said = list(map(astuple, notes.declined[before:])), notes.notes.get("held_out", {}).get(site)
        lesson.work.keep("roundings", key, lambda: _kept(made, *said))
    return made


def _kept(q: Quantized, declined: Sequence[tuple[str, str, str]], held_out: Mapping[str, float] | None) -> Kept:
    parts = {"codes": q.codes, "scales": q.scales, "zero_points": q.zero_points, "tensor_scale": q.tensor_scale}
    arrays = {name: tensor.numpy() for name, tensor in parts.items() if tensor is not None}
    return Kept(arrays, {"shape": list(q.shape), "axis": q.axis, "declined": declined, "held_out": held_out})


def _rounded(kept: Kept, fmt: Format) -> Quantized:
    tensors = {name: torch.from_numpy(array) for name, array in kept.arrays.items()}
    return Quantized(
        fmt, tuple(kept.facts["shape"]), kept.facts["axis"], tensors["codes"], tensors["scales"],
        tensors.get("zero_points"), tensors.get("tensor_scale"),
    )  # fmt: skip
