"""Seconds by step and peaks of memory, from reports of progress: shown always, in the manifest where asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

import qcompile as qc
from qcompile import effort
from qcompile.effort import Effort

TEXT = """<ir_version: 9, opset_import: ["": 18]> agraph (float[N, 32] x) => (float[N, 16] y)
<float[32, 64] first, float[64, 16] second> { h = MatMul(x, first) r = Relu(h) y = MatMul(r, second) }"""

FILLED = 64 << 20
FILLING = f"""
import json
from qcompile.effort import Effort
taken = Effort()
before = taken.figures()["host"]
held = b"1" * {FILLED}
del held
taken("filling", 1, 1)
print(json.dumps([before, taken.figures()["host"]]))
"""


def test_the_time_between_two_reports_counts_for_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5, 12.5, 13.5, 20.5])
    monkeypatch.setattr(effort.time, "perf_counter", lambda: next(clock))
    told: list[tuple[str, int, int]] = []
    taken = Effort(lambda *report: told.append(report))
    reports = [("a", 1, 1), ("b", 1, 2), ("c", 1, 1), ("b", 2, 2)]
    for report in reports:
        taken(*report)
    found = taken.figures()
    assert found["steps"] == {"a": 0.5, "b": 9.0, "c": 1.0}
    assert found["seconds"] == 10.5
    assert told == reports


def test_a_peak_names_the_step_that_reached_it(monkeypatch: pytest.MonkeyPatch) -> None:
    host, device = iter([5, 5, 9, 9]), iter([None, None, 4, 4])
    monkeypatch.setattr(effort, "_peak_of_host", lambda: next(host))
    monkeypatch.setattr(effort, "_peak_of_device", lambda: next(device))
    taken = Effort()
    assert taken.figures()["host"] == {"bytes": 5, "at": None}
    for step in ("a", "b", "c"):
        taken(step, 1, 1)
    found = taken.figures()
    assert found["host"] == {"bytes": 9, "at": "b"}
    assert found["device"] == {"bytes": 4, "at": "b"}


def test_the_peak_is_that_of_the_process() -> None:
    """A process of its own takes 64 MB, gives them back, and has had them."""
    done = subprocess.run([sys.executable, "-c", FILLING], capture_output=True, text=True, check=True)
    before, after = json.loads(done.stdout)
    assert after["at"] == "filling"
    assert 0.95 * FILLED < after["bytes"] - before["bytes"] < 1.5 * FILLED


@pytest.mark.parametrize("asked", [False, True])
def test_a_manifest_says_it_where_that_is_asked_for(
    asked: bool, parse: Callable[[str], ir.Model], tmp_path: Path
) -> None:
    made = qc.export(parse(TEXT), "cpu-int4", tmp_path / "out", method="rtn", effort=asked)
    assert made.effort is not None
    assert made.effort["seconds"] == pytest.approx(sum(made.effort["steps"].values()), abs=0.05)
    assert {"reading", "analyzing", "quantizing", "lowering", "measuring", "writing"} <= made.effort["steps"].keys()
    assert made.effort["host"]["bytes"] > 10e6
    written = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert ("effort" in written) == asked
    if asked:
        assert written["effort"] == made.effort  # nothing is timed behind it here
    assert qc.Artifact.open(tmp_path / "out").effort is None
