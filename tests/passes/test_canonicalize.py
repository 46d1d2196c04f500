"""Graphs of old operator versions become ones that can be lowered, in silence."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import qcompile as qc
from qcompile.analysis.analyze import analyze
from qcompile.compiler import prepare
from qcompile.passes.canonicalize.fold_constants import FoldConstants
from qcompile.passes.state import State
from qcompile.run.compare import compare
from qcompile.run.session import evaluate

#: Squeeze, ReduceSum and Pad have attributes where later versions have inputs; Softmax of 11 flattens.
OLD = """<ir_version: 6, opset_import: ["" : %d]> g (float[n,1,32] x) => (float[n,64] y, float[n] z) {
    a = Squeeze<axes=[1]>(x)\n h = MatMul(a, w)\n y = Softmax<axis=1>(h)\n z = ReduceSum<axes=[1], keepdims=0>(h) }"""


@pytest.mark.parametrize("version", [7, 11])
def test_old_operators_are_exported(tmp_path, capfd, version):
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(OLD % version)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal((32, 64)).astype(np.float32), "w"))
    onnx.save(proto, tmp_path / "old.onnx")
    x = {"x": rng.standard_normal((3, 1, 32)).astype(np.float32)}
    artifact = qc.export(tmp_path / "old.onnx", "cpu-int8", tmp_path / "out", transforms="block")
    assert artifact.manifest["equivalence"]["rel_l2"] < 1e-6
    want, have = evaluate(tmp_path / "old.onnx", x), artifact.run(x)
    assert np.abs(want["y"] - have["y"]).max() < 0.02
    assert capfd.readouterr().err == ""


#: What onnxruntime makes of ``h + MatMul(...)`` and a norm, and an operator behind it whose type ONNX does not infer.
SKIPPED = """<ir_version: 10, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (float[n,6] x) => (float[n,7] y, float[n,8] s) {
    h = MatMul(x, a)\n u = MatMul(x, b)
    m, e, i, s = com.microsoft.SkipLayerNormalization<epsilon=0.01>(h, u, scale, shift, bias)
    v = MatMul(m, c)\n p = com.microsoft.BiasGelu(v, d)\n q = Add(p, d)\n y = MatMul(q, w) }"""


def test_norm_of_a_sum_is_put_apart(tmp_path):
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(SKIPPED)
    shapes = {"a": (6, 8), "b": (6, 8), "scale": 8, "shift": 8, "bias": 8, "c": (8, 16), "d": 16, "w": (16, 7)}
    for name, shape in shapes.items():
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, tmp_path / "m.onnx")
    model = prepare(tmp_path / "m.onnx").model
    x = {"x": rng.standard_normal((3, 6)).astype(np.float32)}
    want, have = evaluate(tmp_path / "m.onnx", x), evaluate(model, x)
    assert compare(want, dict(zip(want, have.values(), strict=True)))[0] < 1e-6
    assert "SkipLayerNormalization" not in {node.op_type for node in model.graph}
    assert all(node.outputs[0].dtype == ir.DataType.FLOAT for node in model.graph)


#: The mean is taken off in float16, and the rest of the norm computed in float32.
CAST_WITHIN = """<ir_version: 9, opset_import: ["": 17]> g (float16[n,4] x) => (float16[n,2] y)
    <float16[4] scale = {1, 2, 3, 4}, float16[4,2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float two = {2}, float e = {1e-5}> {
    m = ReduceMean<axes: ints = [-1]>(x) d = Sub(x, m) f = Cast<to: int = 1>(d) q = Pow(f, two)
    v = ReduceMean<axes: ints = [-1]>(q) b = Add(v, e) r = Sqrt(b) n = Div(f, r) c = Cast<to: int = 10>(n)
    s = Mul(c, scale) y = MatMul(s, w) }"""


def test_a_norm_of_two_types_stays_as_it_is():
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(CAST_WITHIN)))
    x = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float16)}
    assert compare(evaluate(model, x), evaluate(prepare(model).model, x))[0] < 2 * np.finfo(np.float16).eps


#: A convolution at onnxruntime's last level of optimization, then what is the same everywhere.
BLOCKED = """<ir_version: 10, opset_import: ["" : 17, "com.microsoft.nchwc" : 1]>
    g (float[2,3,4,4] x) => (float[2,16,7] y) <float[16,3,1,1] k, float[8,32] a, float[32,7] b, int64[3] flat> {
    o = com.microsoft.nchwc.Conv<kernel_shape=[1,1]>(x, k)\n r = com.microsoft.nchwc.ReorderOutput<channels=8>(o)
    f = Reshape(r, flat)\n t = Transpose<perm=[0,2,1]>(f)\n h = MatMul(t, a)\n y = MatMul(h, b) }"""


def test_what_follows_a_blocked_layout_is_free():
    model = onnx.parser.parse_model(BLOCKED)
    for info in list(model.graph.value_info):
        dims = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        array = np.array([2, 8, 16]) if info.name == "flat" else np.ones(dims, np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
    del model.graph.value_info[:]
    analysis = analyze(ir.from_proto(model))
    first, second = analysis.sites
    assert analysis.free(first.ref_in).label == "none"
    assert analysis.free(second.ref_in).label == "general"


@pytest.mark.parametrize("op", ["AveragePool", "Conv", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReorderInput",
                                "ReorderOutput<channels=8>", "Upsample"])  # fmt: skip
def test_nothing_changes_basis_around_a_blocked_layout(op):
    text = f"""<ir_version: 10, opset_import: ["" : 17, "com.microsoft.nchwc" : 1]>
        g (float[2,4,4,8] x) => (float[2,8,4,4] y) <float[8,8] w> {{
        s = MatMul(x, w)\n h = Transpose<perm=[0,3,1,2]>(s)\n o = com.microsoft.nchwc.{op}(h)\n y = Neg(o) }}"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((8, 8), np.float32), "w"))
    del model.graph.value_info[:]
    analysis = analyze(ir.from_proto(model))
    (site,) = analysis.sites
    refs = [site.ref_out, *analysis.refs(analysis.model.graph.outputs[0])]
    assert {analysis.free(ref).label for ref in refs} == {"none"}


#: A counter beside a state, as tf2onnx writes a GRU; it says nothing of the types of what the loop makes.
LOOP = """<ir_version: 10, opset_import: ["" : 17]> g (float[3,4] x) => (float[3,4] y) <int64 n = {3}, int32 zero = {0}>
{ t, y = Loop<body = b (int64 i, bool c, int32 k, float[3,4] s) => (bool d, int32 l, float[3,4] r)
    { d = Identity(c)\n l = Add(k, k)\n r = Relu(s) }>(n, , zero, x) }"""


def test_types_of_a_loop_are_those_of_its_states(tmp_path):
    onnx.save(onnx.parser.parse_model(LOOP), tmp_path / "m.onnx")
    model = prepare(tmp_path / "m.onnx").model
    x = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    assert (evaluate(model, x)["y"] == np.maximum(x["x"], 0)).all()


TURNED = """g (float[n,8] x) => (float[n,8] y%s) <float[8,8] w, float[8,8] v> {
    t = Transpose(w)\n h = MatMul(x, t)\n u = Transpose(v)\n y = MatMul(h, u) }"""


@pytest.mark.parametrize(("output", "left"), [("", []), (", float[8,8] u", ["Transpose"])])
def test_a_transposed_weight_becomes_one_constant(parse, output, left):
    """Its operator goes: as long as it stood there, each round of folding made the constant again, without end."""
    model = parse(TURNED % output)
    step = FoldConstants(small_bytes=16)
    assert step.apply(State(model))
    assert [node.op_type for node in model.graph] == ["MatMul", *left, "MatMul"]
    assert sorted(name for name in model.graph.initializers if name.endswith("_T")) == ["v_T", "w_T"]
    assert not step.apply(State(model))
