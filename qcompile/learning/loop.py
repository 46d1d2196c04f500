"""The loop: Adam along gradients of the whole model's departure, watched on sequences that nothing is fitted on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from qcompile.learning.objectives import Wanted, departure
from qcompile.learning.redrawn import redrawn

if TYPE_CHECKING:
    from qcompile.learning.settings import Schedule
    from qcompile.notes import Progress

    Batch = Mapping[str, np.ndarray]

__all__ = ["Course", "Learnable", "Lesson", "Rated", "follow"]

#: How often the parameters are judged on held-out sequences, the start not counted.
JUDGED = 8

#: The part of the steps that the mean reaches back over, whose parameters are judged: single steps are noisy.
AVERAGED = 0.1

#: The part of the steps in which the rate grows to its full size.
WARM = 0.05


@dataclass(frozen=True)
class Rated:
    """Parameters that move at one rate.

    Args:
        tensors: leaves with gradients.
        rate: of Adam, at the top of the schedule.
        bound: if given, entries stay between its negative and it.
    """

    tensors: Sequence[Tensor]
    rate: float
    bound: float | None = None


class Learnable(Protocol):
    """A model with parameters."""

    @property
    def rated(self) -> Sequence[Rated]:
        """The parameters."""

    def __call__(self, batch: Batch) -> Mapping[str, Tensor]:
        """Outputs by name at the parameters' present values, with gradients where torch records them."""


@dataclass(frozen=True)
class Lesson:
    """The data that is learned from, and judged by.

    Args:
        batches: what gradients are taken on, small.
        held_out: sequences that nothing is fitted on.
        reference: the float model.
        logits: names of the outputs that are scores over one vocabulary.
    """

    batches: Sequence[Batch]
    held_out: Sequence[Batch]
    reference: Callable[[Batch], Mapping[str, Tensor]]
    logits: Collection[str]


@dataclass(frozen=True)
class Course:
    """The course of one part's learning.

    Args:
        before, after: departures on each held-out sequence at the start, and at the parameters that were kept.
        steps: steps that were made.
        best: the step whose parameters were kept; 0 for the start.
        redrawn: whether tokens were drawn anew from the float model.
    """

    before: np.ndarray
    after: np.ndarray
    steps: int
    best: int
    redrawn: bool = False


def follow(
    learnable: Learnable, lesson: Lesson, schedule: Schedule, *, seed: int, what: str, progress: Progress | None = None
) -> Course:  # fmt: skip
    """Move parameters along gradients, and leave them where held-out sequences depart least.

    The means of the last parameters are judged, and kept: gradients of few sequences are noisy, and what all steps
    agree on is not.

    Args:
        seed: of the order of batches.
        what: the step that progress names.
    """
    groups = [{"params": list(own.tensors), "lr": own.rate} for own in learnable.rated]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    wanted, apart = Wanted(lesson.batches, lesson.reference), Wanted(lesson.held_out, lesson.reference)
    parameters = [tensor for own in learnable.rated for tensor in own.tensors]
    before = after = _judged(learnable, apart, lesson.logits)
    kept, mean, best, done = _copied(parameters), _copied(parameters), 0, 0
    drawn = redrawn(lesson.batches, wanted, lesson.reference, lesson.logits, seed)
    clock, judged = _Clock(schedule), 0
    for index in _order(len(lesson.batches), schedule.steps, seed):
        passed = clock.passed(done)
        if passed >= 1:
            break
        for group, own in zip(optimizer.param_groups, learnable.rated, strict=True):
            group["lr"] = own.rate * schedule.rate * _factor(passed, schedule.steps)
        batch, want = (lesson.batches[index], wanted[index]) if drawn is None else drawn(index)
        optimizer.zero_grad(set_to_none=True)
        departure(want, learnable(batch), lesson.logits).backward()
        optimizer.step()
        _bound(learnable.rated)
        done += 1
        window = max(1.0, AVERAGED * done / clock.passed(done))
        with torch.no_grad():
            for average, tensor in zip(mean, parameters, strict=True):
                average.lerp_(tensor, max(1 / window, 1 / (done + 1)))
        if progress is not None:
            progress(what, done, schedule.steps)
        if (now_judged := int(JUDGED * clock.passed(done))) > judged:
            judged = now_judged
            last = _copied(parameters)
            _set(parameters, mean)
            now = _judged(learnable, apart, lesson.logits)
            _set(parameters, last)
            if now.mean() < after.mean():
                kept, best, after = _copied(mean), done, now
    _set(parameters, kept)
    return Course(before, after, done, best, drawn is not None)


class _Clock:
    """How much of a schedule has passed, by steps or, where that is more, by the time that it has."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule, self._began = schedule, time.monotonic()

    def passed(self, done: int) -> float:
        """The part that has passed, after so many steps."""
        seconds = 60 * self._schedule.minutes
        return max(done / self._schedule.steps, (time.monotonic() - self._began) / seconds if seconds else 0.0)


def _factor(passed: float, steps: int) -> float:
    """The rate relative to the top when a part of the schedule has passed: up in a line, down in a cosine."""
    warm = max(WARM, 1 / steps)
    if passed < warm:
        return (passed + 1 / steps) / warm
    return 0.5 * (1 + math.cos(math.pi * (passed - warm) / max(1 - warm, 1 / steps)))


def _order(count: int, steps: int, seed: int) -> Iterator[int]:
    """Batches in a new order at every pass."""
    rng = np.random.default_rng(seed)
    made = 0
    while made < steps:
        for index in rng.permutation(count).tolist()[: steps - made]:
            made += 1
            yield index


def _judged(learnable: Learnable, apart: Wanted, logits: Collection[str]) -> np.ndarray:
    """The departure on each held-out sequence."""
    with torch.no_grad():
        found = [departure(apart[i], learnable(batch), logits) for i, batch in enumerate(apart.batches)]
    return np.array([float(value) for value in found])


def _set(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)


def _copied(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _bound(rated: Sequence[Rated]) -> None:
    with torch.no_grad():
        for own in rated:
            if own.bound is not None:
                for tensor in own.tensors:
                    tensor.clamp_(-own.bound, own.bound)
