"""What was chosen is tried out beside simpler choices, and gives way to one that clearly diverges less."""

from __future__ import annotations

import numpy as np
import pytest

import qcompile as qc
from qcompile.choice.correction import Correction
from qcompile.choice.trial import Trial
from qcompile.errors import TargetError

GRAPH = """g (float[n,5,32] x) => (float[n,5,16] y) <float[32,64] a, float[64,32] b, float[32,16] c> {
    p = MatMul(x, a)
    q = Relu(p)
    r = MatMul(q, b)
    s = Add(x, r)
    y = MatMul(s, c) }"""
OPTIONS = {"formats": ["int4-g32", "int8-g32"], "budget": {"bits": 6}, "method": "rtn"}


def rows(count: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(3).standard_normal((count, 5, 32)).astype(np.float32)
    return {"x": x * np.where(np.arange(32) % 11 == 3, 8, 1).astype(np.float32)}


def said(manifest: dict) -> list[str]:
    return [
        entry["reason"]
        for entry in manifest["declined"]
        if entry["what"] == "trying the choice out beside simpler ones"
    ]


def test_the_outcome_is_in_the_manifest(parse, tmp_path):
    manifest = qc.export(parse(GRAPH), "reference", tmp_path / "out", calibration=rows(40), **OPTIONS).manifest
    found = manifest["contest"]
    assert found["kept"] == "chosen"
    assert "int4-g32 everywhere" in found["divergences"]
    assert "int8-g32 everywhere" not in found["divergences"]  # beyond the budget
    assert found["divergences"]["chosen"] < found["divergences"]["int4-g32 everywhere"]
    assert found["apart"]["int4-g32 everywhere"] > 2
    assert found["sequences"] == 8
    assert found["predicted"].keys() == found["divergences"].keys()
    for name, predicted in found["predicted"].items():
        assert predicted == pytest.approx(found["divergences"][name], rel=0.6)
    assert found["correction"]["points"] == len(found["predicted"])
    assert found["correction"]["slope"] == pytest.approx(1, abs=0.3)
    assert said(manifest) == []


def test_a_simpler_choice_that_diverges_less_is_taken(parse, tmp_path, monkeypatch):
    def divergences(self, schemes, transforms):
        same = len({scheme.name for scheme in schemes.values()}) == 1
        return np.full(8, 0.01 if same else 0.02) + 1e-4 * np.arange(8)

    monkeypatch.setattr(Trial, "divergences", divergences)
    manifest = qc.export(parse(GRAPH), "reference", tmp_path / "out", calibration=rows(40), **OPTIONS).manifest
    assert manifest["contest"]["kept"] == "int4-g32 everywhere"
    assert {site["format"] for site in manifest["sites"]} == {"int4-g32"}
    (reason,) = said(manifest)
    assert reason.startswith("on 8 sequences that nothing was fitted on, 'int4-g32 everywhere' diverges less: 0.0103 <")


@pytest.mark.parametrize(("count", "reason"), [(3, "the data has less than 4 sequences"), (0, None)])
def test_without_sequences_to_judge_by_nothing_is_tried(parse, tmp_path, count, reason):
    given = {"calibration": rows(count)} if count else {}
    manifest = qc.export(parse(GRAPH), "reference", tmp_path / "out", **given, **OPTIONS).manifest
    assert manifest["contest"] is None
    assert [found[: len(reason or "")] for found in said(manifest)] == ([reason] if reason else [])


def test_of_one_format_nothing_was_assigned(parse, tmp_path):
    artifact = qc.export(
        parse(GRAPH), "reference", tmp_path / "out", calibration=rows(40), formats=["int4-g32"], method="rtn"
    )
    assert artifact.manifest["contest"] is None


def test_a_trial_that_fails_takes_no_export_with_it(parse, tmp_path, monkeypatch):
    def fail(*_):
        raise TargetError("torch has no such operator")

    monkeypatch.setattr(Trial, "divergences", fail)
    manifest = qc.export(parse(GRAPH), "reference", tmp_path / "out", calibration=rows(40), **OPTIONS).manifest
    assert manifest["contest"] is None
    assert said(manifest) == ["torch has no such operator"]


def test_a_correction_is_the_line_through_what_was_measured():
    """Few points that are near each other say little of the slope, and nothing where all are the same."""
    far = Correction.fitted([(1e-6 * 10**i, 2 * (1e-6 * 10**i) ** 1.2) for i in range(6)])
    assert far.slope == pytest.approx(1.2, abs=0.005)
    assert far.of(1e-3) == pytest.approx(2 * 1e-3**1.2, rel=0.02)
    one = Correction.fitted([(0.1, 0.15)])
    assert (one.factor, one.slope, one.points) == (pytest.approx(1.5), 1, 1)
    near = Correction.fitted([(0.1, 0.1), (0.11, 0.15)])
    assert abs(near.slope - 1) < 0.05
    assert Correction.fitted([(0.0, 0.1)]) is None
    assert near.of(0.0) == 0
