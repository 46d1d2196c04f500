"""Exports by the whole pipeline: what the manifest says, and that each runtime computes the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("tvm", reason="TVM is not installed: it is the extra 'tvm'")

import qcompile as qc

ZOO = Path(__file__).parents[3] / "examples" / "zoo"
ROUNDING = 5e-6  # relative L2 of two float32 evaluations of a deep graph


@pytest.fixture
def model(parse: Callable, tmp_path: Path) -> Path:
    """Two layers with a norm between them, of any batch and length."""
    graph = parse("""g (int64[batch, length] ids) => (float[batch, length, 40] logits)
        <float[50, 64] table, float[64, 96] up, float[96, 64] down, float[64] scale, float[64, 40] head> {
        h = Gather(table, ids)
        u = MatMul(h, up)
        a = Relu(u)
        d = MatMul(a, down)
        r = Add(h, d)
        n = RMSNormalization(r, scale)
        logits = MatMul(n, head) }""", 23)  # fmt: skip
    ir.save(graph, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.mark.parametrize("formats", [["int4-g32"], ["nvfp4/nvfp4"]])
def test_an_export_runs_and_agrees_with_the_reference(formats: list[str], model: Path, tmp_path: Path) -> None:
    artifact = qc.export(model, "tvm-cpu", tmp_path / "out", formats=formats, method="rtn")
    entry = artifact.manifest["runtimes"]["tvm"]
    assert entry["files"] == ["tvm.json", "tvm.params", "tvm.so"]
    assert entry["rel_l2_to_reference"] < ROUNDING
    assert entry["sites"]["checked"] == 3
    assert entry["sites"]["rel_l2"] == artifact.manifest["implementation"]["rel_l2"] < ROUNDING
    assert (entry["sites"]["codes"] > 0, entry["sites"]["differing_codes"]) == ("/" in formats[0], 0)
    out = artifact.run({"ids": np.array([[1, 2, 3]])}, "tvm")["logits"]
    assert out.shape == (1, 3, 40)
    with pytest.raises(qc.QCompileError, match="runtime 'ort' cannot run"):
        artifact.run({"ids": np.array([[1, 2, 3]])}, "ort")


def test_an_export_for_another_processor_is_not_run(model: Path, tmp_path: Path) -> None:
    artifact = qc.export(model, "tvm-cpu", tmp_path / "out", method="rtn", tvm_target="llvm -mtriple=aarch64-linux-gnu")
    entry = artifact.manifest["runtimes"]["tvm"]
    assert entry["not_run"] == "compiled for another machine"
    assert artifact.manifest["quantization"]["rel_l2"] > 0  # measured on the engine
    with pytest.raises(qc.QCompileError, match="aarch64"):
        artifact.run({"ids": np.array([[1, 2, 3]])})


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, formats",
    [("language_model", ["int4-g32"]), ("dit", ["nvfp4/nvfp4"]), ("mamba", ["mxfp4-even/mxfp4-even"])],
)
def test_the_shipped_models(name: str, formats: list[str], tmp_path: Path) -> None:
    artifact = qc.export(ZOO / f"{name}.onnx", "tvm-cpu", tmp_path / "out", formats=formats, method="rtn")
    assert artifact.manifest["runtimes"]["tvm"]["rel_l2_to_reference"] < ROUNDING
