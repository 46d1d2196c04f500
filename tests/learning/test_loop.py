"""The loop keeps what held-out sequences prefer, and nothing that they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from qcompile.learning.loop import Lesson, Rated, follow
from qcompile.learning.settings import Schedule


class Point:
    """Outputs are a point, whatever the batch; learning moves it to where the float model's outputs are."""

    def __init__(self, bound: float | None = None) -> None:
        self.point = torch.ones(3, requires_grad=True)
        self.rated: Sequence[Rated] = [Rated([self.point], 0.05, bound)]

    def __call__(self, batch: Mapping[str, np.ndarray]) -> Mapping[str, torch.Tensor]:
        return {"y": self.point}


def lesson(learned: Sequence[float], held_out: float) -> Lesson:
    """Outputs of the float model are what batches hold."""
    batches = [{"x": np.full(3, value, np.float32)} for value in (*learned, held_out)]
    return Lesson(batches[:-1], batches[-1:], lambda batch: {"y": torch.from_numpy(batch["x"])}, set())


def test_follows_gradients_to_what_batches_agree_on() -> None:
    own = Point()
    course = follow(own, lesson([1.5, 2.5], 2.0), Schedule(steps=200), seed=0, what="learning")
    best = (1 / 1.5 + 1 / 2.5) / (1 / 1.5**2 + 1 / 2.5**2)  # errors count relative to each batch's own outputs
    assert own.point.tolist() == pytest.approx([best] * 3, rel=0.01)
    assert course.before[0] == pytest.approx(0.5 * 0.25)  # half the relative squared error of 1 against 2
    assert course.after[0] == pytest.approx(0.5 * float((own.point.detach()[0] - 2) ** 2) / 4, abs=1e-6)


def test_keeps_the_start_where_held_out_sequences_disagree() -> None:
    own = Point()
    course = follow(own, lesson([2.0, 2.0], 0.5), Schedule(steps=40), seed=0, what="learning")
    assert own.point.tolist() == [1.0] * 3
    assert course.best == 0
    assert course.steps == 40


def test_stays_within_bounds() -> None:
    own = Point(bound=1.2)
    follow(own, lesson([3.0], 3.0), Schedule(steps=60), seed=0, what="learning")
    assert own.point.tolist() == pytest.approx([1.2] * 3, rel=1e-3)


def test_stops_by_the_clock_and_tells_every_step() -> None:
    told: list[tuple[str, int, int]] = []
    schedule = Schedule(steps=10**6, minutes=0.002)
    course = follow(
        Point(), lesson([3.0], 3.0), schedule, seed=0, what="learning", progress=lambda *said: told.append(said)
    )
    assert 0 < course.steps < 10**6
    assert told == [("learning", step + 1, 10**6) for step in range(course.steps)]
