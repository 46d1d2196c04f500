"""Divergences, flips and losses against torch's own; nothing between equal models; a planted change is found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from qcompile.checks.behaviour import behaviour, compare_scores, find_scores, first_difference, token_input
from qcompile.errors import InputError

RNG = np.random.default_rng(0)
WANT = RNG.standard_normal((4, 12, 9)).astype(np.float32) * 3
HAVE = WANT + RNG.standard_normal(WANT.shape).astype(np.float32)
TOKENS = RNG.integers(0, 9, (4, 12))


def batches(want: np.ndarray, have: np.ndarray) -> Iterator[tuple[dict[str, Any], Any, Any]]:
    for rows in (slice(0, 3), slice(3, 4)):
        yield {"ids": TOKENS[rows]}, want[rows], have[rows]


def test_divergence_flips_and_losses() -> None:
    found = behaviour("logits", True, batches(WANT, HAVE), "ids")
    p, q = (torch.from_numpy(x).double().log_softmax(-1) for x in (WANT, HAVE))
    divergence = F.kl_div(q, p, log_target=True, reduction="none").sum(-1).numpy()
    np.testing.assert_allclose(np.stack([prompt.divergence for prompt in found.prompts]), divergence, rtol=1e-12)
    flips = np.stack([prompt.flips for prompt in found.prompts])
    np.testing.assert_array_equal(flips, (p.argmax(-1) != q.argmax(-1)).numpy())
    assert 0 < flips.sum() < flips.size
    confident = np.stack([prompt.confident for prompt in found.prompts])
    np.testing.assert_array_equal(confident, p.exp().amax(-1).numpy() >= 0.5)
    for side, scores in enumerate((p, q)):
        losses = [F.nll_loss(scores[i, :-1], torch.from_numpy(TOKENS[i, 1:])).item() for i in range(4)]
        assert [prompt.losses[side] for prompt in found.prompts] == pytest.approx(losses)


def test_equal_models_do_not_differ() -> None:
    found = behaviour("logits", True, batches(WANT, WANT), "ids")
    assert max(prompt.divergence.max() for prompt in found.prompts) == 0
    assert not any(prompt.flips.any() for prompt in found.prompts)
    assert all(prompt.losses[0] == prompt.losses[1] for prompt in found.prompts)


def test_a_planted_change_is_found() -> None:
    planted = WANT.copy()
    planted[2, 7] = -WANT[2, 7]
    found = behaviour("logits", True, batches(WANT, planted), None)
    assert [prompt.number for prompt in found.worst] == [2, 0, 1, 3]
    assert np.flatnonzero(found.worst[0].divergence).tolist() == [7]
    assert [b.start for b in found.buckets() if b.divergence > 0] == [7]
    assert sum(b.positions for b in found.buckets()) == 48


def test_scores_of_nothing_and_infinity() -> None:
    want, have = np.array([[0.0, -np.inf, 1.0]]), np.array([[0.0, -np.inf, 1.0]])
    divergence, flips, _ = compare_scores(want, have)
    assert divergence.tolist() == [0.0]
    assert flips.tolist() == [False]


def test_other_outputs_differ_by_squares() -> None:
    want, have = np.ones((2, 3, 5)), np.ones((2, 3, 5))
    have[1, 2] = 3.0
    found = behaviour("y", False, iter([({}, want, have)]), None)
    assert found.prompts[0].divergence.tolist() == [0, 0, 0]
    assert found.prompts[1].divergence.tolist() == pytest.approx([0, 0, 0.5 * 20 / 5])
    assert found.prompts[1].flips.size == 0


def test_the_output_that_is_compared() -> None:
    outputs = {"hidden": np.zeros((4, 12, 3), np.float32), "logits": WANT, "count": np.zeros(4, np.int64)}
    assert find_scores(outputs, None, {"ids": TOKENS}) == ("logits", True)
    assert find_scores(outputs, "hidden", {"ids": TOKENS}) == ("hidden", True)
    assert find_scores({"y": WANT}, None, {"x": WANT}) == ("y", False)
    assert token_input({"ids": TOKENS}, WANT) == "ids"
    assert token_input({"ids": TOKENS + 9}, WANT) is None
    with pytest.raises(InputError, match="no output 'scores'"):
        find_scores(outputs, "scores", {})
    with pytest.raises(InputError, match="no output of floating-point"):
        find_scores({"count": np.zeros(4, np.int64)}, None, {})


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(InputError, match="other"):
        behaviour("y", False, iter([({}, WANT, WANT[:, 1:])]), None)


def test_what_is_no_number_is_refused() -> None:
    broken = WANT.copy()
    broken[3, 0, 0] = np.nan
    with pytest.raises(InputError, match="NaN in the other"):
        behaviour("y", True, batches(WANT, broken), None)


@pytest.mark.parametrize("made, place", [([1, 2, 3], None), ([1, 5, 3], 1), ([0, 2, 4], 0)])
def test_the_first_difference(made: list[int], place: int | None) -> None:
    assert first_difference(np.array([1, 2, 3]), np.array(made)) == place
