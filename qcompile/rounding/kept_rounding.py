"""Rounded weights in the folder of ``--work``, made by any process, and a walk that goes only as far as it must."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from qcompile.analysis.siblings import Siblings
from qcompile.errors import InputError
from qcompile.formats import Format, Quantized
from qcompile.formats.scalar import Scalar
from qcompile.formats.static import Activation
from qcompile.group.group import ALONE, Group
from qcompile.notes import Decline, Declined
from qcompile.rounding.moments import InputMoments
from qcompile.rounding.sequential import Walk
from qcompile.statistics.collected import Statistics
from qcompile.work import Kept, Work

__all__ = ["Asked", "Following", "Heard", "Lesson", "Notes", "Rounding", "kept_roundings", "learned_from"]


class Notes(Protocol):
    """Notes that steps leave, as ``passes.state`` has them."""

    declined: list[Declined]
    notes: dict[str, Any]

    def decline(self, site: str, what: str, reason: str) -> None:
        """Record that something was left alone."""


@dataclass
class Heard:
    """Notes of one site, to be said again wherever its weight is used."""

    declined: list[Declined] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def decline(self, site: str, what: str, reason: str) -> None:
        """Record that something was left alone."""
        self.declined.append(Declined(site, what, reason))


@dataclass(frozen=True)
class Asked:
    """A weight to be rounded.

    Args:
        words: the site, and what is asked of it.
        fmt: the format of the weight; only block formats are kept.
        activation: that in which the site reads its input.
        cost: how long it takes, relative to others.
        make: rounds it, and leaves notes.
    """

    words: Sequence[str | None]
    fmt: Scalar
    activation: Activation | None
    cost: float
    make: Callable[[Notes], Quantized]


@dataclass(frozen=True)
class Rounding:
    """A weight as it was rounded.

    Args:
        weight: on the CPU.
        declined: what was left alone.
        held_out: errors on sequences that it was not fitted on, by what made them; ``None`` where none were measured.
    """

    weight: Quantized
    declined: Sequence[tuple[str, str, str]]
    held_out: Mapping[str, float] | None

    def say(self, site: str, notes: Notes) -> None:
        """Leave the notes of its site."""
        for entry in self.declined:
            notes.decline(*entry)
        if self.held_out is not None:
            notes.notes.setdefault("held_out", {})[site] = self.held_out


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


def kept_roundings(lesson: Lesson, asked: Sequence[Asked], group: Group = ALONE) -> list[Rounding]:
    """Weights as they are rounded, or as they were rounded for the same reasons before.

    Args:
        lesson: what they are rounded by.
        asked: weights that need not wait for each other.
        group: processes each of which rounds some; all have all afterwards.
    """
    keys = [lesson.work.key(list(one.words)) for one in asked]
    made = {}
    for number, (key, one) in enumerate(zip(keys, asked, strict=True)):
        if isinstance(one.fmt, Format) and (found := lesson.work.find("roundings", key)) is not None:
            entries = [(site, what, reason) for site, what, reason in found.facts["declined"]]
            made[number] = Rounding(_rounded(found, one.fmt), entries, found.facts["held_out"])
    missing = [number for number in range(len(asked)) if number not in made]
    if lesson.following is not None:
        for number in missing:
            lesson.teach(asked[number].activation)  # of which all processes have a part
    new = group.dealt([asked[number].cost for number in missing], lambda place: _made(asked[missing[place]]))
    for number, rounding in zip(missing, new, strict=True):
        made[number] = rounding
        if isinstance(asked[number].fmt, Format) and lesson.sure:
            lesson.work.keep("roundings", keys[number], partial(_kept, rounding))
    return [made[number] for number in range(len(asked))]


def _made(one: Asked) -> Rounding:
    heard = Heard()
    weight = one.make(heard)
    said = [(entry.site, entry.what, entry.reason) for entry in heard.declined]
    return Rounding(weight, said, heard.notes.get("held_out", {}).get(str(one.words[0])))


def _kept(rounding: Rounding) -> Kept:
    q = rounding.weight
    parts = {"codes": q.codes, "scales": q.scales, "zero_points": q.zero_points, "tensor_scale": q.tensor_scale}
    arrays = {name: tensor.numpy() for name, tensor in parts.items() if tensor is not None}
    facts = {"declined": list(rounding.declined), "held_out": rounding.held_out}
    return Kept(arrays, {"shape": list(q.shape), "axis": q.axis, **facts})


def _rounded(kept: Kept, fmt: Format) -> Quantized:
    tensors = {name: torch.from_numpy(array) for name, array in kept.arrays.items()}
    return Quantized(
        fmt, tuple(kept.facts["shape"]), kept.facts["axis"], tensors["codes"], tensors["scales"],
        tensors.get("zero_points"), tensors.get("tensor_scale"),
    )  # fmt: skip
