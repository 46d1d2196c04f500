"""Histograms of what sites read are those of NumPy, and a Hadamard matrix takes a loud channel's peak away."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.linalg import hadamard

import qcompile as qc
from qcompile.artifact.charts import outline
from qcompile.artifact.spreads import HALVES, spread_entries
from qcompile.transforms import Dense

SIZE = 64


def sample() -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((100, SIZE)).astype(np.float32)
    rows[:, 5] = 30.0
    return rows


def counted(rows: np.ndarray) -> list[int]:
    edges = np.sqrt(np.mean(rows.astype(np.float64) ** 2)) * 2.0 ** (np.arange(-HALVES, HALVES + 1) / 2)
    edges[0], edges[-1] = 0.0, np.inf
    return np.histogram(np.abs(rows), edges)[0].tolist()


def test_spreads_are_counted_before_and_behind_a_transform() -> None:
    rows, matrix = sample(), hadamard(SIZE) / 8.0
    known = {"x": SimpleNamespace(sample=rows), "z": SimpleNamespace(sample=rows[:0])}
    groups = [SimpleNamespace(name=name) for name in ("x", "y", "z")]
    found = spread_entries(groups, known, lambda _: Dense(matrix))
    assert list(found) == ["x"]  # nothing is known of the others
    turned = rows.astype(np.float64) @ matrix.T
    assert found["x"]["before"]["counts"] == counted(rows)
    assert np.abs(np.subtract(found["x"]["after"]["counts"], counted(turned))).sum() <= 2  # values at an edge
    for name, values in (("before", rows), ("after", turned)):
        peak = np.mean(np.abs(values).max(1) / np.sqrt(np.mean(values.astype(np.float64) ** 2, 1)))
        assert found["x"][name]["peak"] == pytest.approx(peak, rel=1e-4)
    assert found["x"]["before"]["peak"] > 7 > 2 > found["x"]["after"]["peak"]


def test_exports_state_them_for_data_and_not_for_random_inputs(parse, tmp_path) -> None:
    text = "g (float[n,64] x) => (float[n,64] y) <float[64,64] a, float[64,64] b> { h = MatMul(x, a) y = MatMul(h, b) }"
    model, rows = parse(text), sample()
    calibrated = qc.export(model, "reference", tmp_path / "a", calibration={"x": rows}, formats=["int4-g32"])
    found = calibrated.manifest["spreads"]
    assert set(found) == {"x", "h"}
    assert sum(found["x"]["before"]["counts"]) % SIZE == 0
    assert found["x"]["before"]["peak"] == pytest.approx(30 / np.sqrt(np.mean(rows.astype(float) ** 2)), rel=0.05)
    assert 'class="before"' in (tmp_path / "a" / "report.html").read_text()
    assert qc.export(model, "reference", tmp_path / "b", method="rtn").manifest["spreads"] == {}


def test_an_outline_shows_what_is_rare() -> None:
    points = [tuple(map(float, point.split(","))) for point in outline([99999, 1, 0], 30, 100).split()]
    assert points[0] == (0, 100)
    assert points[-1] == (30, 100)
    heights = [100 - y for _, y in points[1:-1:2]]
    assert heights == pytest.approx([100, 0, 0], abs=0.1)
    assert [100 - float(p.split(",")[1]) for p in outline([90, 9, 1], 30, 100).split()[1:-1:2]] == pytest.approx(
        [100 * (1 - np.log(share) / np.log(1e-5)) for share in (0.9, 0.09, 0.01)], abs=0.1
    )
