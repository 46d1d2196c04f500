"""Lowered sites against the formats' definition: on few rows of many, the same for all sites that read a value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qcompile as qc
from qcompile.checks import sites

GRAPH = """g (float[n,t,32] x) => (float[n,t,24] y) <float[32,24] a, float[32,24] b> {
    p = MatMul(x, a)
    q = MatMul(x, b)
    y = Mul(p, q) }"""


@pytest.mark.parametrize(("rows", "compared"), [(40, 40), (1000, sites.CHECKED_ROWS)])
def test_few_rows_are_compared(parse, tmp_path: Path, monkeypatch, rows: int, compared: int) -> None:
    oracle, seen = sites._oracle, []

    def watched(site: Any, weight: Any, activation: Any, x: np.ndarray, *rest: Any) -> np.ndarray:
        seen.append(x.shape)
        return oracle(site, weight, activation, x, *rest)

    monkeypatch.setattr(sites, "_oracle", watched)
    data = {"x": np.random.default_rng(0).standard_normal((4, rows, 32)).astype(np.float32)}
    made = qc.export(parse(GRAPH), "reference", tmp_path / "a", calibration=data, formats=["int4-g32"], method="rtn")
    assert seen == [(1, compared, 32)] * 2
    assert made.manifest["implementation"]["rel_l2"] < 1e-6
