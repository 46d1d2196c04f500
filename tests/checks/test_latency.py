"""An artifact's time beside its source's: measured in turn, told with how, never written into the artifact."""

from __future__ import annotations

import filecmp
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from commands import done

import qcompile as qc
from qcompile.backends.ort.runner import load_untransformed
from qcompile.checks import latency as timing
from qcompile.checks.latency import interleaved

TEXT = """g (float[n,64] x) => (float[n,64] y) <float[64,64] a, float[64,64] b> {
    h = MatMul(x, a)
    s = Sigmoid(h)
    y = MatMul(s, b) }"""


@pytest.fixture
def model(parse, tmp_path: Path) -> Path:
    ir.save(parse(TEXT), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture(scope="module")
def rotated(tmp_path_factory: pytest.TempPathFactory) -> qc.Artifact:
    """An artifact with online transforms, timed."""
    import changes

    folder = tmp_path_factory.mktemp("latency")
    return qc.export(changes.parse(TEXT), "cpu-int4", folder / "out", transforms="hadamard", method="rtn", latency=True)


def test_functions_run_in_turn_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    times, count = interleaved([lambda: calls.append("a"), lambda: calls.append("b")], seconds=60)
    assert calls == ["a", "b"] * (count + 1)
    assert count == timing.RUNS
    assert all(time > 0 for time in times)


def test_slow_functions_run_once_each() -> None:
    assert interleaved([lambda: None], seconds=0)[1] == 1


def test_times_come_with_how_they_were_measured(rotated: qc.Artifact) -> None:
    found = rotated.latency
    assert found["source_ms"] > 0
    assert found["artifact_ms"] > 0
    assert found["threads"] == 1
    assert list(found["inputs"]) == ["x"]
    online = found["online_transforms"]
    assert online["without_ms"] > 0
    (written,) = (ir.load(rotated.folder / "model.onnx").graph.initializers,)
    assert online["bytes"] == sum(v.const_value.nbytes for name, v in written.items() if name.startswith("transform_"))
    assert online["bytes"] > 0
    assert online["predicted_gain"] > 0


def test_what_is_taken_out_is_the_online_transforms(rotated: qc.Artifact, parse, tmp_path: Path) -> None:
    run, _ = load_untransformed(rotated.folder)
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    (with_them,), (without,) = rotated.run({"x": x}).values(), run({"x": x}).values()
    assert with_them.shape == without.shape
    assert not np.allclose(with_them, without, atol=0.1)  # the weights still expect them
    plain = qc.export(parse(TEXT), "cpu-int4", tmp_path / "plain", transforms="none", method="rtn")
    assert load_untransformed(plain.folder) is None
    assert plain.latency is None


def test_timing_changes_no_file(model: Path) -> None:
    folders = [model.parent / name for name in ("timed", "not timed")]
    timed, other = (qc.export(model, "cpu-int4", f, method="rtn", latency=f is folders[0]) for f in folders)
    assert timed.latency is not None
    assert other.latency is None
    names = sorted(path.name for path in folders[0].iterdir())
    assert filecmp.cmpfiles(*folders, names, shallow=False) == (names, [], [])


def test_targets_that_are_emulated_say_why_they_have_no_time(model: Path) -> None:
    artifact = qc.export(model, "reference", model.parent / "out", method="rtn", latency=True)
    assert list(artifact.latency) == ["not_measured"]
    assert "emulated here" in artifact.latency["not_measured"]


def test_a_fault_of_timing_is_told_and_the_artifact_stands(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no clock")

    monkeypatch.setattr(timing, "interleaved", fail)
    result = done("export", model, "--target", "cpu-int4", "--method", "rtn", "-o", model.parent / "out")
    assert "not measured: RuntimeError: no clock" in result.stdout
    assert qc.Artifact.open(model.parent / "out").manifest["target"] == "cpu-int4"


# -- the closing table -----------------------------------------------------------------------------------------------


def closing(model: Path, *more: object) -> str:
    """The closing table of an export, its lines joined."""
    arguments = ("--target", "cpu-int4", "--method", "rtn", "--transforms", "hadamard", "-o", model.parent / "out")
    return " ".join(done("export", model, *arguments, *more).stdout.split())


def test_the_closing_table_tells_times_and_what_transforms_cost(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "interleaved", lambda runs, _: ([0.001, 0.004, 0.0005][: len(runs)], 7))
    said = closing(model)
    assert "source 1 ms → 4 ms, 4.00x slower (median of 7 runs in turn, one thread, x 2x64)" in said
    assert "without online transforms 0.5 ms" in said
    assert "warning: its online transforms make it 8.00x slower" in said
    assert "compare --transforms none" in said


def test_transforms_that_gain_more_than_they_cost_give_no_warning(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "interleaved", lambda runs, _: ([0.004, 0.001, 0.00099][: len(runs)], 7))
    monkeypatch.setattr(timing, "SAME_SIZE", 10.0)  # next to weights as small as these, every transform is large
    said = closing(model)
    assert "4.00x faster" in said
    assert "warning" not in said


@pytest.mark.parametrize("option", ["-q", "--no-latency"])
def test_nothing_is_timed_that_nobody_reads(model: Path, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    monkeypatch.setattr(timing, "interleaved", lambda *_: pytest.fail("it was timed"))
    assert "latency" not in closing(model, option)


def test_an_artifact_that_is_larger_than_its_source_is_called_larger(parse, tmp_path: Path) -> None:
    ir.save(parse("g (float[n,8] x) => (float[n,8] y) <float[8,8] a> { y = MatMul(x, a) }"), tmp_path / "model.onnx")
    assert "x larger)" in closing(tmp_path / "model.onnx", "--no-latency")
