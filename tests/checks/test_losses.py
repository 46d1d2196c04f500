"""What a loss is measured on: tokens that the logits score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompile.checks.losses import FloatModel
from qcompile.run.data import Data

SCORES = np.log(np.array([[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]], np.float32))


@pytest.mark.parametrize("tokens, loss", [([0, 1], -np.log(0.25)), ([0, 3], None), ([0, -1], None)])
def test_tokens_that_the_logits_do_not_score_have_no_loss(tokens: list[int], loss: float | None) -> None:
    unused: Any = None
    model = FloatModel(unused, ["scores"], frozenset(["scores"]), unused, unused)
    data = Data(({"ids": np.array([tokens])},), random=False)
    assert model.loss(lambda batches: [{"scores": SCORES} for _ in batches], data) == (
        loss if loss is None else pytest.approx(loss)
    )
