"""What competes in front of sites: what is known of it may be forgotten, and what scales undo is not tried twice."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
import torch

from qcompile.analysis.siblings import Siblings
from qcompile.choice import contenders
from qcompile.choice.export_options import Options
from qcompile.compiler import choice_of
from qcompile.transforms.fitted import wush_of_moments

GRAPH = """g (float[n,5,64] x) => (float[n,5,8] y) <float[64,64] a, float[64,64] b, float[64,8] c> {
    p = MatMul(x, a)
    q = MatMul(x, b)
    r = Mul(p, q)
    y = MatMul(r, c) }"""


def test_what_is_forgotten_changes_no_choice(parse, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rng = parse(GRAPH), np.random.default_rng(0)
    loud = np.where(np.arange(64) % 9, 1, 8)
    rows = {"x": (loud * rng.standard_normal((24, 5, 64))).astype(np.float32)}
    options = Options("reference", formats=["mxfp4/mxfp4"], calibration=rows, transforms="auto")

    def chosen() -> tuple[Any, Any, Any]:
        found = choice_of(model, options)
        return found.losses, found.placement.errors, found.placement.online

    forgotten: list[int] = []
    forget = contenders.Tried.forget

    def counted(tried: contenders.Tried, groups: Collection[Siblings]) -> None:
        before = len(tried.made)
        forget(tried, groups)
        forgotten.append(before - len(tried.made))

    with monkeypatch.context() as patch:
        patch.setattr(contenders.Tried, "forget", lambda tried, groups: None)
        before = chosen()
    monkeypatch.setattr(contenders.Tried, "forget", counted)
    assert before[2]
    assert chosen() == before
    assert sum(forgotten) > 0


def test_wush_undoes_scales() -> None:
    """``T' D = T`` if ``T'`` is made of the moments behind a diagonal ``D``: it is not tried there."""
    generator = torch.Generator().manual_seed(0)
    rows, weights = torch.randn(2, 3, 90, 8, generator=generator, dtype=torch.float64)
    scale = torch.rand(3, 8, generator=generator, dtype=torch.float64)[:, None] + 0.5
    plain = wush_of_moments(rows.mT @ rows, weights.mT @ weights, damping=0.0).matrices
    rows, weights = rows * scale, weights / scale
    behind = wush_of_moments(rows.mT @ rows, weights.mT @ weights, damping=0.0).matrices
    torch.testing.assert_close(behind * scale, plain, rtol=1e-9, atol=1e-9)
