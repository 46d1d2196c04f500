"""The measuring of profiles: every kind of work is measured, on few shapes here, and an export takes the result."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
import pytest
from commands import done, refused

import qcompile as qc
from qcompile import profiling
from qcompile.prices.operator_work import KINDS
from qcompile.prices.profile import OTHER


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {
        "SHAPES": ((16, (16,)), (16, (16, 16)), (64, (32,)), (32, (64,))), "ROWS": (1, 2, 16), "NEAR_BYTES": 8,
        "BLOCKS": ((16, 1), (32, 2)), "CONVOLUTIONS": ((4, 1, 3, 8), (8, 8, 3, 4)),
        "SECONDS": 1e-4,
    }  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(profiling, name, value)


def test_a_profile_measures_every_kind_of_work(quick: None, parse, tmp_path: Path) -> None:
    done("profile", "cpu-int8", "-o", str(tmp_path / "own.json"), "-q")
    found = json.loads((tmp_path / "own.json").read_text())
    assert set(found["products"]) == {"w8a8", "w8a8-tensor", "w32", "convolution"}
    assert set(found["operators"]) == {*KINDS, OTHER}
    assert all(any(work.values()) for work in (*found["products"].values(), found["transforms"]))
    assert found["machine"]["threads"] == 1
    ir.save(parse("g (float[n,16] x) => (float[n,8] y) <float[16,8] a> { y = MatMul(x, a) }"), tmp_path / "model.onnx")
    command = ["export", str(tmp_path / "model.onnx"), "--target", "cpu-int8", "--method", "rtn", "-q"]
    done(*command, "--profile", str(tmp_path / "own.json"), "-o", str(tmp_path / "out"))
    timing = json.loads((tmp_path / "out" / "manifest.json").read_text())["timing"]
    assert timing["profile"]["machine"] == found["machine"]
    assert timing["predicted_ms"] > 0


def test_a_budget_of_time_decides_how_inputs_are_rounded(parse, tmp_path: Path) -> None:
    """One scale for a whole tensor errs more, and takes less time."""
    text = """g (float[64,64] x) => (float[64,64] y) <float[64,64] a, float[64,64] b>
        { h = MatMul(x, a)\n y = MatMul(h, b) }"""
    ways, bounds = ["int8-channel/int8-channel", "int8-channel/uint8-tensor"], {}
    for way in ways:
        options = {"formats": [way], "transforms": "none", "method": "rtn"}  # at the edges of the graph, too
        bounds[way] = qc.export(parse(text), "cpu-int8", tmp_path / way, **options).manifest["timing"]["predicted_ms"]
    slow, fast = bounds.values()
    assert fast < slow
    for bound, chosen in ((slow * 1.01, {"int8-channel"}), (fast * 1.01, {"uint8-tensor"})):
        options = {"formats": ways, "transforms": "none", "method": "rtn", "budget": {"latency": bound}}
        made = qc.export(parse(text), "cpu-int8", tmp_path / f"{bound}", **options).manifest
        assert {site["activation"] for site in made["sites"]} == chosen
        assert made["timing"]["predicted_ms"] <= bound


def test_targets_that_nobody_can_time_here_are_refused(tmp_path: Path) -> None:
    assert "cpu-int4, cpu-int8" in refused(tmp_path, "profile", "reference")
