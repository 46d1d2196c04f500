"""Graphs in bfloat16 compute in float32."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

import qcompile as qc
from qcompile.ir.capture import capture
from qcompile.ir.widen import computes_in_bfloat16
from qcompile.run.session import evaluate

TEXT = """g (int64[b,5] ids) => (bfloat16[b,5,7] y)
 <float[20,32] table, float[32] scale, float[32,64] up, float[64,32] down, float[32,7] head, float two, float tiny,
  int64[1] last>
{
 h = Gather(table, ids)
 s = Pow(h, two)
 m = ReduceMean(s, last)
 e = Add(m, tiny)
 r = Sqrt(e)
 n = Div(h, r)
 k = Mul(n, scale)
 u = MatMul(k, up)
 a = Relu(u)
 d = MatMul(a, down)
 t = Add(h, d)
 w = Cast<to = 1>(t)
 c = Cast<to = 16>(w)
 y = MatMul(c, head)
}"""


@pytest.fixture
def model(parse, tmp_path: Path) -> Path:
    graph = parse(TEXT, last=np.array([-1]), two=np.array(2, np.float32), tiny=np.array(1e-5, np.float32))
    for value in graph.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT:
            narrow = value.const_value.numpy().astype(ml_dtypes.bfloat16)
            value.const_value, value.type = ir.tensor(narrow, name=value.name), ir.TensorType(ir.DataType.BFLOAT16)
    ir.save(graph, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def in_float(file: Path, ids: np.ndarray) -> np.ndarray:
    """What the graph means, by NumPy."""
    found = ir.load(file).graph.initializers
    w = {name: value.const_value.numpy().astype(np.float32) for name, value in found.items()}
    h = w["table"][ids]
    n = h / np.sqrt((h**2).mean(-1, keepdims=True) + w["tiny"]) * w["scale"]
    return (h + np.maximum(n @ w["up"], 0) @ w["down"]) @ w["head"]


def test_graph_in_bfloat16_is_captured_in_float32(model: Path) -> None:
    source = capture(model)
    assert source.widened
    assert not computes_in_bfloat16(source.model)
    assert source.bytes == model.stat().st_size
    ids = np.arange(10).reshape(2, 5)
    (y,) = evaluate(source.model, {"ids": ids}).values()
    np.testing.assert_allclose(y, in_float(model, ids), rtol=1e-5, atol=1e-5)


def test_graph_in_bfloat16_goes_through_the_pipeline(model: Path, tmp_path: Path) -> None:
    artifact = qc.export(model, "cpu-int4", tmp_path / "out", formats=["int8-g32"])
    (said,) = [entry["reason"] for entry in artifact.manifest["declined"] if entry["what"] == "computing in bfloat16"]
    assert "float32" in said
    assert artifact.manifest["equivalence"]["rel_l2"] < 1e-5
    ids = np.arange(10).reshape(2, 5)
    want = in_float(model, ids)
    assert np.linalg.norm(artifact.run({"ids": ids})["y"] - want) < 0.02 * np.linalg.norm(want)


def test_weights_that_are_only_stored_in_bfloat16_stay(parse) -> None:
    graph = parse("g (float[2,8] x) => (float[2,4] y) <float[8,4] w> { v = Cast<to = 1>(w)\n y = MatMul(x, v) }")
    weight = graph.graph.initializers["w"]
    weight.const_value = ir.tensor(weight.const_value.numpy().astype(ml_dtypes.bfloat16), name="w")
    weight.type = ir.TensorType(ir.DataType.BFLOAT16)
    assert not capture(graph).widened
