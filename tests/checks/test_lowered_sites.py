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


CONVOLUTIONS = """g (float[n,8,l] x) => (float[n,6,m] z) <float[8,8,3] a, float[8] b, float[8,2,2] c, float[6,8,2] d> {
    p = Conv <pads = [2, 1], strides = [2]> (x, a, b)
    q = Relu(p)
    r = Conv <group = 4, dilations = [2]> (q, c)
    s = Relu(r)
    z = Conv <auto_pad = "SAME_LOWER"> (s, d) }"""


@pytest.mark.parametrize(
    ("target", "formats", "known"),
    [
        ("reference", "int4-g32", 3), ("reference", "int8-channel/int8-channel", 3), ("cpu-int8", "int8-channel", 3),
        ("qdq-int8", "int8-channel/uint8-static", 2),  # the last writes an output, rounded
    ],
)  # fmt: skip
def test_convolutions_are_compared(target: str, formats: str, known: int, parse, tmp_path: Path) -> None:
    data = {"x": np.random.default_rng(0).standard_normal((64, 8, 20)).astype(np.float32)}
    made = qc.export(
        parse(CONVOLUTIONS), target, tmp_path / "a", calibration=data, formats=[formats], method="rtn",
        transforms="none",
    )  # fmt: skip
    assert made.manifest["implementation"]["checked_sites"] == known
    assert made.manifest["implementation"]["rel_l2"] < 1e-4
    errors = [(one["t2"], one["measured_t2"]) for one in made.manifest["sites"] if "measured_t2" in one]
    assert len(errors) == known
    most = 4 if "static" not in formats else 16  # predictions know no range of a whole tensor
    assert all(predicted / 4 < measured < most * predicted for predicted, measured in errors)


def test_a_kernel_that_was_lowered_otherwise_is_found(parse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convolved = sites._convolved
    monkeypatch.setattr(sites, "_convolved", lambda site, form, x, weight: convolved(site, form, x, weight.flip(1)))
    data = {"x": np.random.default_rng(0).standard_normal((64, 8, 20)).astype(np.float32)}
    made = qc.export(parse(CONVOLUTIONS), "reference", tmp_path / "a", calibration=data, method="rtn")
    assert made.manifest["implementation"]["rel_l2"] > 0.1
