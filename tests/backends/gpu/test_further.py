"""A fault of one runtime costs the files of that runtime alone, and is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from commands import done, refused

import qcompile as qc

pytest.importorskip("triton")

from qcompile.backends.gpu import lowering, runner

MLP = """
    mlp (float[rows, 64] x) => (float[rows, 32] y) <float[64, 64] up, float[64, 32] down>
    { h = MatMul(x, up)  g = ACTIVATION(h)  y = MatMul(g, down) }
"""
TRITON_FILES = ("model.py", "weights.safetensors", "layout.json", "kernels", "runtime", "cubins")


@pytest.fixture
def mlp(tmp_path: Path, parse: Callable[..., ir.Model]) -> Callable[[str], Path]:
    """Writes a model with that operator between two sites."""

    def write(activation: str = "Relu") -> Path:
        ir.save(parse(MLP.replace("ACTIVATION", activation)), tmp_path / "mlp.onnx")
        return tmp_path / "mlp.onnx"

    return write


def exported(model: Path, target: str) -> tuple[qc.Artifact, str]:
    """The artifact, which onnxruntime runs where the target is its, and what the screen says of it."""
    folder = model.parent / "out"
    said = " ".join(done("export", model, "--target", target, "-o", folder, "--transforms", "none").stdout.split())
    return qc.Artifact.open(folder), said


def holds_onnx_alone(artifact: qc.Artifact) -> bool:
    x = np.ones((3, 64), np.float32)
    assert artifact.run({"x": x})["y"].shape == (3, 32)
    return not [name for name in TRITON_FILES if (artifact.folder / name).exists()]


def test_an_operator_that_one_runtime_lacks(mlp: Callable[[str], Path]) -> None:
    model = mlp("com.microsoft.Trilu")
    artifact, said = exported(model, "blackwell-mxfp4")
    reason = artifact.manifest["runtimes"]["triton"]["missing"]
    assert "com.microsoft::Trilu) cannot be lowered" in reason
    assert "triton not written warning: triton: node" in said
    assert holds_onnx_alone(artifact)
    with pytest.raises(qc.InputError, match="cannot be lowered"):
        artifact.load("triton")
    only = refused(model.parent, "export", model, "--target", "hopper-int4", "-o", model.parent / "other")
    assert "cannot be lowered" in only  # the target's own runtime


@pytest.mark.parametrize("error", [qc.TargetError("ptxas is lost"), RuntimeError("ptxas is lost\nat line 3")])
def test_a_compiler_that_fails(error: Exception, mlp: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, arches: object) -> None:
        assert (folder / "model.py").is_file()  # the program was written before
        raise error

    monkeypatch.setattr(lowering, "compile_ahead", fail)
    artifact, _ = exported(mlp(), "blackwell-mxfp4")
    kind = "" if isinstance(error, qc.QCompileError) else "RuntimeError: "
    assert artifact.manifest["runtimes"]["triton"] == {"missing": f"{kind}ptxas is lost"}
    assert holds_onnx_alone(artifact)


@pytest.mark.parametrize("target", ["blackwell-mxfp4", "hopper-int4"])
def test_a_rehearsal_that_fails(target: str, mlp: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        raise AttributeError("the interpreter knows no such dtype")

    monkeypatch.setattr(lowering, "compile_ahead", lambda folder, arches: None)
    monkeypatch.setattr(runner, "rehearse", fail)
    artifact, said = exported(mlp(), target)
    entry = artifact.manifest["runtimes"]["triton"]
    assert entry["not_checked"] == "AttributeError: the interpreter knows no such dtype"
    assert "rel_l2_to_reference" not in entry
    assert "model.py" in entry["files"]
    assert (artifact.folder / "model.py").is_file()
    assert "triton not checked warning: its rehearsal failed: AttributeError" in said


def test_a_runtime_without_faults_is_checked(mlp: Callable[[], Path]) -> None:
    artifact, said = exported(mlp(), "blackwell-mxfp4")
    entry = artifact.manifest["runtimes"]["triton"]
    assert entry["rel_l2_to_reference"] < 1e-4  # float32 sums in another order
    assert "not_checked" not in entry
    assert "warning" not in said
