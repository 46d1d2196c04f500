"""The names that a user imports: few, pinned, and free until they are used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qcompile as qc

NAMES = [
    "Artifact", "GraphError", "InputError", "MissingExtraError", "Pass", "Pipeline", "QCompileError", "Source",
    "State", "Target", "TargetError", "VerificationError", "__version__", "capture", "compare", "export",
    "get_target", "inspect", "load_pass", "rotate", "selective_scan", "state_space_duality", "verify",
]  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """``x -> MatMul -> Relu -> MatMul``, widths 64, 128, 64."""
    rng = np.random.default_rng(0)
    weights = {"up": (64, 128), "down": (128, 64)}
    stored = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "down"], ["y"], name="second"),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 64]) for n in "xy"]
    graph = helper.make_graph(nodes, "mlp", values[:1], values[1:], stored)
    path = tmp_path / "mlp.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_the_names_are_pinned_and_sorted() -> None:
    assert qc.__all__ == NAMES
    assert sorted(NAMES, key=lambda name: (name.startswith("_"), name)) == sorted(
        qc.__all__, key=lambda name: (name.startswith("_"), name)
    )


def test_every_name_resolves() -> None:
    for name in qc.__all__:
        assert getattr(qc, name) is not None
        assert name in dir(qc)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = qc.nonsense


@pytest.mark.parametrize("module", ["qcompile", "qcompile.cli.commands"])
def test_importing_costs_nothing(module: str) -> None:
    heavy = ("torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "numpy", "scipy", "networkx", "qcompile.backends")
    run = python(f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])")
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_functions_stay_functions_when_modules_of_their_name_are_imported() -> None:
    run = python("import qcompile as qc, qcompile.ir.capture, qcompile.checks.losses\n"
                 "from qcompile import capture, verify\n"
                 "assert all(map(callable, (qc.capture, qc.verify, capture, verify)))")  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_export_and_run(model: Path, tmp_path: Path) -> None:
    artifact = qc.export(model, "cpu-int4", tmp_path / "out", method="rtn")
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    (y,) = artifact.run({"x": x}).values()
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(model).graph.initializer}
    want = np.maximum(x @ weights["up"], 0) @ weights["down"]
    assert np.linalg.norm(y - want) / np.linalg.norm(want) < 0.2
    assert qc.Artifact.open(tmp_path / "out").manifest == artifact.manifest


def test_export_takes_what_capture_returns(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    artifact = qc.export(qc.capture(model), target="cpu-int8", method="rtn")
    assert artifact.folder == Path("mlp.cpu-int8")


def test_rotate_and_inspect(model: Path) -> None:
    rotated = qc.rotate(model)
    assert rotated.prepared.model.graph is not None
    found = qc.inspect(model)
    assert [site["name"] for site in found["sites"]] == ["first", "second"]


def test_passes_compose(model: Path) -> None:
    state = qc.State(qc.capture(model).model.clone())
    assert qc.Pipeline([qc.load_pass("canonicalize")(), qc.load_pass("fold-scales")()]).apply(state)
    with pytest.raises(qc.InputError, match="unknown pass 'nonsense'; there are"):
        qc.load_pass("nonsense")
