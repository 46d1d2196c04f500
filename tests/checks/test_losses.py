"""What a loss is measured on: tokens that the logits score."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from qcompile.checks.losses import Batches, FloatModel, Outputs
from qcompile.run.data import Data

SCORES = np.log(np.array([[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]], np.float32))


def scored(batches: Batches) -> Iterator[dict[str, np.ndarray]]:
    return ({"scores": SCORES} for _ in batches)


class Given(FloatModel):
    """A float model whose outputs are given."""

    @contextmanager
    def _running(self) -> Iterator[Outputs]:
        yield scored


@pytest.mark.parametrize("tokens, loss", [([0, 1], -np.log(0.25)), ([0, 3], None), ([0, -1], None)])
def test_tokens_that_the_logits_do_not_score_have_no_loss(tokens: list[int], loss: float | None) -> None:
    unused: Any = None
    model = Given(unused, ["scores"], frozenset(["scores"]), unused, unused)
    data = Data(({"ids": np.array([tokens])},), random=False)
    found = model.measure(scored, data)
    assert found.loss == ({} if loss is None else pytest.approx({"float": loss, "quantized": loss}))
    assert (found.rel_l2, found.divergence) == (0.0, pytest.approx(0.0, abs=1e-6))
