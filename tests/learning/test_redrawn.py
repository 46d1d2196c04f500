"""Tokens that are drawn anew: from what the model predicts, in part, each time others, and only where it predicts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from qcompile.learning.loop import Lesson, Rated, follow
from qcompile.learning.objectives import Wanted
from qcompile.learning.redrawn import SHARE, redrawn
from qcompile.learning.settings import Schedule

Batch = Mapping[str, np.ndarray]

#: Of a chain whose next state is one of two, each with its probability.
NEXT = torch.tensor([[0, 0.25, 0.75, 0], [0, 0, 0.25, 0.75], [0.75, 0, 0, 0.25], [0.25, 0.75, 0, 0]])


def chain(batch: Batch) -> dict[str, torch.Tensor]:
    """A model that predicts by the last token alone."""
    return {"y": NEXT[torch.from_numpy(batch["ids"])].clamp_min(1e-12).log()}


def even(batch: Batch) -> dict[str, torch.Tensor]:
    """A model whose scores have the shape of predictions, and say nothing of what comes next."""
    return {"y": torch.from_numpy(np.eye(4, dtype=np.float32)[batch["ids"]]) * 9}


def text(rows: int = 4, length: int = 4000) -> Batch:
    rng, ids = np.random.default_rng(1), np.zeros((rows, length), np.int64)
    for row in ids:
        for place in range(1, length):
            row[place] = rng.choice(4, p=NEXT[row[place - 1]].numpy())
    return {"ids": ids, "mask": np.ones((rows, length), np.float32)}


def test_draws_follow_the_predictions() -> None:
    batch = text()
    own = redrawn([batch], Wanted([batch], chain), chain, {"y"}, seed=0)
    assert own is not None
    new, want = own(0)
    ids, given = new["ids"], batch["ids"]
    assert torch.equal(want["y"], chain(new)["y"])
    assert new["mask"] is batch["mask"]
    assert np.array_equal(ids[:, 0], given[:, 0])
    assert (NEXT[given[:, :-1], ids[:, 1:]] > 0).all()  # by what was given in front, not by what was drawn there
    changed = (ids != given)[:, 1:].mean()
    assert changed == pytest.approx(SHARE * 2 * 0.75 * 0.25, rel=0.1)
    assert (own(0)[0]["ids"] != ids).any()


def test_learning_sees_other_tokens_each_time() -> None:
    batch, seen = text(2, 60), []

    class Watched:
        scale = torch.ones((), requires_grad=True)
        rated = (Rated([scale], 1e-3),)

        def __call__(self, own: Batch) -> dict[str, torch.Tensor]:
            if torch.is_grad_enabled():
                seen.append(own["ids"])
            return {"y": self.scale * chain(own)["y"]}

    lesson = Lesson([batch], [text(1, 60)], chain, {"y"})
    assert follow(Watched(), lesson, Schedule(steps=3), seed=0, what="learning").redrawn
    assert len(seen) == 3
    assert len({ids.tobytes() for ids in (*seen, batch["ids"])}) == 4


def test_equal_seeds_draw_alike() -> None:
    batch = text(2, 50)
    drawn = [redrawn([batch], Wanted([batch], chain), chain, {"y"}, seed)(0)[0]["ids"] for seed in (3, 3, 4)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_scores_that_predict_nothing_are_left_alone() -> None:
    batch = text()
    assert redrawn([batch], Wanted([batch], even), even, {"y"}, seed=0) is None
    assert redrawn([batch], Wanted([batch], chain), chain, set(), seed=0) is None
