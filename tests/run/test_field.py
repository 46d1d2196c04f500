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
from qcompile.run.compare import compare
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


#: A norm that ONNX does not know, in the standard domain; a body, in a file that lists constants as inputs.
KINDS = {
    "a norm of onnxruntime": """<ir_version: 6, opset_import: ["" : 11]> g (float[n,32] x) => (float[n,64] y) {
        a = SimplifiedLayerNormalization(x, s)\n b = Unsqueeze<axes=[1]>(a)\n c = Squeeze<axes=[1]>(b)
        y = MatMul(c, w) }""",
    "a loop": """<ir_version: 3, opset_import: ["" : 11]> g (float[n,32] x) => (float[n,64] y) {
        z = Loop(k, t, x) <body = b (int64 i, bool c, float[n,32] h) => (bool d, float[n,32] r) {
            d = Identity(c)\n u = Unsqueeze<axes=[1]>(h)\n v = Squeeze<axes=[1]>(u)\n r = Relu(v) }>
        y = MatMul(z, w) }""",
}


@pytest.mark.parametrize("name", KINDS)
def test_all_of_an_old_graph_is_brought_forward(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(KINDS[name])
    floats = {"w": rng.standard_normal((32, 64)), "s": np.ones(32)}
    arrays = {key: array.astype(np.float32) for key, array in floats.items()} | {"k": np.array(2), "t": np.array(True)}
    read = {value for node in proto.graph.node for value in node.input}
    for key, array in arrays.items():
        if key in read:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, key))
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            proto.graph.input.append(onnx.helper.make_tensor_value_info(key, kind, array.shape))
    onnx.save(proto, tmp_path / "old.onnx")
    artifact = qc.export(tmp_path / "old.onnx", "cpu-int8", tmp_path / "out")
    x = {"x": rng.standard_normal((3, 32)).astype(np.float32)}
    want, have = evaluate(tmp_path / "old.onnx", x), artifact.run(x)
    assert compare(want, have)[0] < 0.02


@pytest.mark.parametrize(("graph", "function"), [(14, 13), (18, 21), (12, 13)])
def test_a_function_may_state_another_version(graph: int, function: int, tmp_path: Path) -> None:
    header = f'<ir_version: 8, opset_import: ["" : {graph}, "own" : 1]>'
    body = f'<domain: "own", opset_import: ["" : {function}]> F (a) => (b) {{ c = Relu(a)\n b = Add(c, c) }}'
    text = f"g (float[n,32] x) => (float[n,64] y) {{ h = own.F(x)\n y = MatMul(h, w) }}\n{body}"
    file = saved(tmp_path / "m.onnx", text, header, w=WEIGHT)
    assert qc.export(file, "cpu-int8", tmp_path / "out").manifest["equivalence"]["rel_l2"] < 1e-6
