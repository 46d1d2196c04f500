"""Graphs as they are met in the field: rare, but valid, and taken by onnxruntime."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import qcompile as qc
from qcompile.compiler import prepare
from qcompile.run.data import DRAWN_ELEMENTS, example_inputs
from qcompile.run.session import evaluate

WEIGHT = (np.random.default_rng(0).standard_normal((32, 64)) / 8).astype(np.float32)


def saved(file: Path, text: str, header: str = '<ir_version: 8, opset_import: ["" : 17]>', **given: np.ndarray) -> Path:
    proto = onnx.parser.parse_model(f"{header} {text}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in given.items())
    onnx.save(proto, file)
    return file


@pytest.mark.parametrize("version", [11, 13])
def test_the_standard_domain_has_two_names(version: int, tmp_path: Path) -> None:
    header = f'<ir_version: 7, opset_import: ["" : {version}]>'
    file = saved(tmp_path / "m.onnx", "g (float[n,32] x) => (float[n,64] y) { y = MatMul(x, w) }", header, w=WEIGHT)
    proto = onnx.load(file)
    proto.opset_import[0].domain = "ai.onnx"
    onnx.save(proto, file)
    artifact = qc.export(file, "cpu-int8", tmp_path / "out")
    assert artifact.manifest["equivalence"]["rel_l2"] < 1e-6
    onnx.checker.check_model(onnx.load(tmp_path / "out" / "model.onnx"), full_check=True)


def test_a_graph_may_have_no_operator(tmp_path: Path) -> None:
    file = saved(tmp_path / "m.onnx", "g () => (float[32,64] w) { }", w=WEIGHT)
    assert qc.inspect(file)["sites"] == []
    assert np.array_equal(evaluate(qc.rotate(file).model, {})["w"], WEIGHT)


def test_strings_are_constants_too(tmp_path: Path) -> None:
    text = """g (float[n,32] x) => (float[n,64] y, string[2] s)
        { y = MatMul(x, w)\n a = Identity(names)\n s = Identity(a) }"""
    file = saved(tmp_path / "m.onnx", text, w=WEIGHT, names=np.array(["one", "two"], object))
    assert len(qc.inspect(file)["sites"]) == 1
    assert qc.export(file, "cpu-int8", tmp_path / "out").manifest["equivalence"]["rel_l2"] < 1e-6


def test_a_value_without_axes_has_none_to_remove(tmp_path: Path) -> None:
    text = "g (float t, float[n,32] x) => (float[n,64] y) { s = Squeeze(t, last)\n h = MatMul(x, w)\n y = Mul(h, s) }"
    file = saved(tmp_path / "m.onnx", text, w=WEIGHT, last=np.array([-1]))
    assert [site.weight.name for site in prepare(file).analysis.sites] == ["w"]


def test_inputs_with_many_open_dimensions_are_small(tmp_path: Path) -> None:
    dims = ",".join(f"d{i}" for i in range(9))
    file = saved(tmp_path / "m.onnx", f"g (float[{dims}] x) => (float[{dims}] y) {{ y = Relu(x) }}")
    drawn = example_inputs(qc.capture(file).model)["x"]
    assert 0 < math.prod(drawn.shape) <= DRAWN_ELEMENTS


def test_outputs_keep_the_names_of_their_dimensions(tmp_path: Path) -> None:
    """Behind a norm that onnxruntime fused with a sum, ONNX infers no shape."""
    text = """g (float[batch,length,32] x) => (float[batch,length,64] y) { h = MatMul(x, w)\n u = MatMul(x, w)
        y = com.microsoft.SkipLayerNormalization(h, u, scale, shift) }"""
    header = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'
    vectors = {"scale": np.ones(64, np.float32), "shift": np.zeros(64, np.float32)}
    file = saved(tmp_path / "m.onnx", text, header, w=WEIGHT, **vectors)
    qc.export(file, "cpu-int8", tmp_path / "out")
    for model in (qc.rotate(file).model, qc.capture(tmp_path / "out" / "model.onnx").model):
        (value,) = model.graph.outputs
        assert [dim if isinstance(dim, int) else dim.value for dim in value.shape] == ["batch", "length", 64]


@pytest.mark.parametrize("target", ["cpu-int8", "tvm-cpu"])
def test_a_number_may_be_an_input(target: str, tmp_path: Path) -> None:
    if target == "tvm-cpu":
        pytest.importorskip("tvm")
    text = "g (float[n,32] x, float t) => (float[n,64] y) { h = MatMul(x, w)\n y = Mul(h, t) }"
    file = saved(tmp_path / "m.onnx", text, w=WEIGHT)
    artifact = qc.export(file, target, tmp_path / "out")
    full, half = (artifact.run({"x": WEIGHT.T, "t": np.array(t, np.float32)})["y"] for t in (1, 0.5))
    assert np.array_equal(half, full / 2)
    assert full.any()
