"""Sweeps: points of the front are the choices of exports, from one calibration."""

from __future__ import annotations

import json
from dataclasses import replace

import changes
import numpy as np
import onnx_ir as ir
import pytest
from commands import done, refused

from qcompile.choice.export_options import Options
from qcompile.choice.front import bounds_of
from qcompile.compiler import choice_of
from qcompile.sweep import sweep

GRAPH = """g (float[n,32] x) => (float[n,16] y) <float[32,64] a, float[64,32] b, float[32,64] c, float[64,16] d>
    { h = MatMul(x, a)\n r = Relu(h)\n i = MatMul(r, b)\n j = MatMul(i, c)\n s = Relu(j)\n y = MatMul(s, d) }"""
FORMATS = ["int4-g32", "int8-g32"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model, and data for it."""
    folder, rng = tmp_path_factory.mktemp("sweep"), np.random.default_rng(0)
    ir.save(changes.parse(GRAPH), folder / "m.onnx")
    np.savez(folder / "data.npz", x=rng.standard_normal((144, 32)).astype(np.float32))
    return folder


def rows(files):
    return [{"x": part} for part in np.split(np.load(files / "data.npz")["x"], 24)]


def test_points_are_what_exports_choose(files):
    options = Options(target="cpu-int4", formats=FORMATS, calibration=rows(files), method="rtn")
    points = sweep(files / "m.onnx", options, {"bits": (3.5, 8.0)}, points=4)
    assert [point.bounds["bits"] for point in points] == [3.5, 5.0, 6.5, 8.0]
    assert "cannot be met" in points[0].missed
    reached = points[1:]
    assert all(point.spent["bits"] <= point.bounds["bits"] for point in reached)
    losses = [point.loss for point in reached]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]
    choice = choice_of(files / "m.onnx", replace(options, budget={"bits": 5.0}))
    assert choice.assignment.loss == pytest.approx(reached[0].loss)
    assert choice.assignment.cost["bits"] == pytest.approx(reached[0].spent["bits"])
    assert len(choice.placement.online) == reached[0].online


def test_the_command_prints_the_front(files):
    out = files / "front.json"
    text = done("sweep", files / "m.onnx", "--target", "cpu-int4", "--budget", "bits=4..8,bytes=20k", "--points", "2",
                "--calibration", files / "data.npz", "--method", "rtn", "--json", out,
                "--html", files / "front.html").stdout  # fmt: skip
    points = json.loads(out.read_text())["points"]
    assert [point["budget"] for point in points] == [{"bits": 4.0, "bytes": 20e3}, {"bits": 8.0, "bytes": 20e3}]
    assert points[0]["formats"] == {"int4-g32": 4}
    assert "bits=4" in text
    assert (files / "front.html").read_text().count("<circle") == 4


def test_what_cannot_be_swept_is_refused(files):
    asked = ["sweep", files / "m.onnx", "--target", "cpu-int4"]
    assert "auto, wush or none" in refused(files, *asked, "--budget", "bits=4..8", "--transforms", "hadamard")
    assert "bits=3.5..8" in refused(files, *asked, "--budget", "bits")
    assert "larger one" in refused(files, *asked, "--budget", "bits=8..4")
    assert "--formats a,b" in refused(files, *asked[:2], "--target", "reference", "--budget", "bits=4..8")
    assert "takes several" in refused(files, *asked, "--budget", "bits=4..8", "--formats", "int4-g32")


def test_ranges_go_together():
    found = list(bounds_of({"bits": (4.0, 8.0), "bytes": (5.0, 5.0), "latency": (1.0, 2.0)}, 3))
    assert len(found) == 9
    assert found[0] == {"bits": 4.0, "bytes": 5.0, "latency": 1.0}
    assert found[-1] == {"bits": 8.0, "bytes": 5.0, "latency": 2.0}
