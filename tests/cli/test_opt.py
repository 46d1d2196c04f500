"""``qcompile opt``: any list of passes on a model, printed, timed and verified as is asked."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from changes import parse
from commands import call, done, refused

from qcompile.ir.files import save_model
from qcompile.passes.canonicalize.drop_identities import DropIdentities
from qcompile.passes.index import PIPELINES
from qcompile.passes.state import State
from qcompile.run.compare import compare
from qcompile.run.session import evaluate

GRAPH = """g (float[n,9] x) => (float[n,7] y) <float[9] s, float[9] b, float[9,7] w>
    { h = Identity(x)\n [norm] n = LayerNormalization<axis=-1>(h, s, b)\n [first] k = MatMul(n, w)\n y = Tanh(k) }"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A norm with a scale and a shift in front of a site."""
    save_model(parse(GRAPH), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def opt(model: Path, passes: str, *more: object) -> str:
    """What a list of passes says; the result is ``out.onnx`` beside the model."""
    return done("opt", model, "--passes", passes, "-o", model.parent / "out.onnx", *more).stdout


def opt_refused(model: Path, passes: str, *more: object) -> str:
    return refused(model.parent, "opt", model, "--passes", passes, "-o", model.parent / "out.onnx", *more)


@pytest.mark.parametrize("passes", ["fold-shifts,fold-scales", "fold-scales{smallest=0.01}", "canonicalize", "prepare"])
def test_passes_are_run_and_the_function_stays(model: Path, passes: str) -> None:
    said = opt(model, passes)
    assert re.search(r"graph +changed", said)
    onnx.checker.check_model(onnx.load(model.parent / "out.onnx"))
    x = {"x": np.random.default_rng(0).standard_normal((3, 9)).astype(np.float32)}
    assert compare(evaluate(model, x), evaluate(model.parent / "out.onnx", x))[0] < 1e-6


def test_only_those_passes_are_run(model: Path) -> None:
    opt(model, "drop-identities", "-q")
    assert [node.op_type for node in onnx.load(model.parent / "out.onnx").graph.node] == [
        "LayerNormalization", "MatMul", "Tanh"
    ]  # fmt: skip


def test_declined_is_said(model: Path) -> None:
    said = opt(model, "center-norms")
    assert re.search(r"graph +the same", said)
    assert "turning it into RMSNorm" in said
    assert "'x' comes from outside" in said


def test_the_graph_is_printed_after_passes(model: Path) -> None:
    said = opt(model, "drop-identities,fold-scales", "--print-after", "drop-identities,fold-scales", "-q")
    first, second = said.split("# after fold-scales, which changed the graph\n")
    assert first.startswith("# after drop-identities, which changed the graph\n")
    assert "[norm] n = LayerNormalization <axis: int = -1> (x, s, b)" in first
    assert "ones_9_float" in second
    assert "float[9,7] w" in second
    assert "w =" not in second


def test_times_are_shown(model: Path) -> None:
    said = opt(model, "drop-identities,modernize", "--time-passes", "-q")
    rows = [line.split() for line in said.splitlines() if line.strip() and "─" not in line]
    assert [(name, changed, before, after) for name, changed, _, before, after in rows[2:]] == [
        ("drop-identities", "yes", "4", "3"), ("modernize", "no", "3", "3"), ("all", "yes", "4", "3")
    ]  # fmt: skip


def negate(self: DropIdentities, state: State) -> bool:
    """Change what a graph computes."""
    value = state.model.graph.initializers["w"]
    value.const_value = ir.tensor(-value.const_value.numpy(), name="w")
    return False


def test_the_pass_that_breaks_a_model_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "relative L2" in opt(model, "prepare", "--verify-each")
    (model.parent / "out.onnx").unlink()
    monkeypatch.setattr(DropIdentities, "apply", negate)
    said = opt_refused(model, "fold-shifts,drop-identities,fold-scales", "--verify-each")
    assert said.startswith("pass 'drop-identities' broke the model: the rewritten model differs from its source by ")


def no_operator(self: DropIdentities, state: State) -> bool:
    """Name an operator that there is not."""
    state.model.graph[0].op_type = "Identityy"
    return True


def test_a_model_that_does_not_run_any_more_is_broken(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DropIdentities, "apply", no_operator)
    said = opt_refused(model, "drop-identities", "--verify-each")
    assert said.startswith("pass 'drop-identities' broke the model: onnxruntime cannot load the graph")


def test_it_is_verified_on_data(model: Path) -> None:
    np.savez(model.parent / "x.npz", x=np.ones((3, 9), np.float32))
    opt(model, "fold-shifts", "--verify-each", "--calibration", model.parent / "x.npz")
    np.savez(model.parent / "x.npz", z=np.ones((3, 9), np.float32))
    (model.parent / "out.onnx").unlink()
    given = ("--calibration", model.parent / "x.npz")
    assert "the data lacks x" in opt_refused(model, "fold-shifts", "--verify-each", *given)
    assert "verifying each pass, which was not asked for" in opt_refused(model, "fold-shifts", *given)


def test_mistakes_are_refused(model: Path) -> None:
    assert "unknown pass 'fold-scalez'; the nearest: fold-scales" in opt_refused(model, "fold-scalez")
    assert "qcompile rotate runs it" in opt_refused(model, "rotate")
    assert "qcompile export runs it" in opt_refused(model, "quantize")
    said = opt_refused(model, "fold-shifts,modernize", "--print-after", "fold-scales")
    assert said == "pass 'fold-scales' is none of those that are to run; these are fold-shifts, modernize"
    assert "there is no file" in opt_refused(model.parent / "none.onnx", "fold-shifts")
    opt(model, "fold-shifts")
    assert "out.onnx' exists already" in opt_refused(model, "fold-shifts")


def test_a_bug_keeps_its_traceback_and_says_where(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: DropIdentities, state: State) -> bool:
        node = state.model.graph[1]
        return bool(node.inputs[9])

    monkeypatch.setattr(DropIdentities, "apply", fail)
    error = call("opt", model, "--passes", "drop-identities", "-o", model.parent / "out.onnx").exception
    assert isinstance(error, IndexError)
    assert "in pass 'drop-identities'" in error.__notes__[0]
    assert "-> [norm] n = LayerNormalization" in error.__notes__[0]
    assert not (model.parent / "out.onnx").exists()


def test_passes_and_pipelines_are_listed_with_options_and_order() -> None:
    said = " ".join(done("passes").stdout.split())
    assert "fold-scales smallest=0.001, norms=False Fold constant scales into sites." in said
    for pipeline in PIPELINES.values():
        assert f"{pipeline.name} {', '.join(step.name for step in pipeline.passes)}" in said
