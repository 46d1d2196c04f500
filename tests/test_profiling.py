"""The measuring of profiles: every kind of work is measured, on few shapes here, and an export takes the result."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
import pytest
from commands import done, refused

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
    assert set(found["products"]) == {"w8a8", "w32", "convolution"}
    assert set(found["operators"]) == {*KINDS, OTHER}
    assert all(any(work.values()) for work in (*found["products"].values(), found["transforms"]))
    assert found["machine"]["threads"] == 1
    ir.save(parse("g (float[n,16] x) => (float[n,8] y) <float[16,8] a> { y = MatMul(x, a) }"), tmp_path / "model.onnx")
    command = ["export", str(tmp_path / "model.onnx"), "--target", "cpu-int8", "--method", "rtn", "-q"]
    done(*command, "--profile", str(tmp_path / "own.json"), "-o", str(tmp_path / "out"))
    timing = json.loads((tmp_path / "out" / "manifest.json").read_text())["timing"]
    assert timing["profile"]["machine"] == found["machine"]
    assert timing["predicted_ms"] > 0


def test_targets_that_nobody_can_time_here_are_refused(tmp_path: Path) -> None:
    assert "cpu-int4, cpu-int8" in refused(tmp_path, "profile", "reference")
