"""Target ``integer``: no floating-point operator inside, and nearly what scales in floats compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

import qcompile as qc
from qcompile.backends.ort.integer_only.integer_operators import OPERATORS
from qcompile.backends.ort.integer_only.numbers import dyadic
from qcompile.backends.ort.manifest import INTEGER
from qcompile.choice import selection
from qcompile.errors import TargetError
from qcompile.run.session import Session

RESIDUAL = """g (float[n,16,6,6] x) => (float[n,8] y)
    <float[16,16,3,3] w, float[16] b, float[16,16,1,1] v, float[16,1,3,3] u, float[16,1,1] k, float[16,8] t>
    { a = Conv<pads=[1,1,1,1]>(x, w, b)\n r = Relu(a)\n c = Conv(r, v)\n s1 = Add(r, c)\n h = Relu(s1)
    p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(h)\n d = Conv<group=16, pads=[1,1,1,1]>(p, u)\n e = Mul(d, k)
    m = GlobalAveragePool(e)\n f = Flatten(m)\n y = MatMul(f, t) }"""
POINTS = """g (float[n,8,6,6] x) => (float[n,16,3,3] y)
    <float[8,8,1,1] w, float[8,8,1,1] v, float[8,8,1,1] u, float[8,1,1] slope, float three = {3.0}, float zero = {0.0},
    float six = {6.0}>
    { a = Conv(x, w)\n b = Add(a, three)\n c = Clip(b, zero, six)\n d = Mul(a, c)\n e = Div(d, six)
    f = Conv(e, v)\n g1 = PRelu(f, slope)\n h = Sigmoid(g1)\n i = Mul(g1, h)\n j = Concat<axis=1>(e, i)
    q, r = Split<axis=1, num_outputs=2>(j)\n s = Sub(q, r)\n t = Conv(s, u)\n z = Concat<axis=1>(t, s)
    y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(z) }"""
ENCODER = """<ir_version: 8, opset_import: ["": 20]> g (float[n,6,16] x) => (float[n,4] y)
    <float[16] g1, float[16] b1, float[16,16] emb, float[16,16] q, float[16,16] k, float[16,16] v, float[16,16] o,
    float[16,32] up, float[32] c, float[32,16] down, float[16,4] head, float scale = {0.25}, int64[1] axes = {1}>
    { em = MatMul(x, emb)\n l = LayerNormalization(em, g1, b1)\n lq = MatMul(l, q)\n lk = MatMul(l, k)
    lv = MatMul(l, v)\n kt = Transpose<perm=[0,2,1]>(lk)
    a = MatMul(lq, kt)\n sc = Mul(a, scale)\n p = Softmax(sc)\n m = MatMul(p, lv)
    w = MatMul(m, o)\n r = Add(w, l)\n h = MatMul(r, up)\n hb = Add(h, c)\n ge = Gelu(hb)\n dn = MatMul(ge, down)
    r2 = Add(r, dn)\n mean = ReduceMean<keepdims=0>(r2, axes)\n y = MatMul(mean, head) }"""
SHAPES = {RESIDUAL: (32, 16, 6, 6), POINTS: (32, 8, 6, 6), ENCODER: (64, 6, 16)}
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}


def exported(parse, folder: Path, model: str, target: str = "integer") -> tuple[qc.Artifact, np.ndarray]:
    x = np.random.default_rng(1).standard_normal(SHAPES[model]).astype(np.float32)
    np.savez(folder / "x.npz", x=x)
    return qc.export(parse(model), target, folder / target, calibration=folder / "x.npz", method="rtn"), x


def floats_inside(path: Path) -> list[str]:
    """Operators of a file that read or make a float, but for those that quantize an input or write an output."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    graph = model.graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert all(name in kinds for node in graph.node for name in node.output)
    inputs, outputs = {value.name for value in graph.input}, {value.name for value in graph.output}
    found = []
    for node in graph.node:
        first = node.op_type == "QuantizeLinear" and node.input[0] in inputs
        last = node.op_type == "DequantizeLinear" and node.output[0] in outputs
        if not (first or last) and any(kinds[name] in FLOATS for name in (*node.input, *node.output) if name):
            found.append(node.op_type)
    return found


@pytest.mark.parametrize("model", SHAPES, ids=["residual", "points", "encoder"])
def test_no_operator_inside_computes_in_floats(parse, tmp_path, model):
    artifact, x = exported(parse, tmp_path, model)
    assert floats_inside(tmp_path / "integer" / "model.onnx") == []
    exact = Session(parse(model)).run({"x": x})["y"]
    error = np.linalg.norm(artifact.run({"x": x})["y"] - exact) / np.linalg.norm(exact)
    assert 1e-3 < error < 0.06


def test_the_walk_finds_floats(parse, tmp_path):
    exported(parse, tmp_path, RESIDUAL, "qdq-int8")
    assert "Conv" in floats_inside(tmp_path / "qdq-int8" / "model.onnx")


@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        ("LpNormalization(a)", "integer form of LpNormalization"),
        ('Resize<mode="linear">(a, , s)', "interpolates"),
    ],
)
def test_an_operator_without_an_integer_form_is_refused(parse, tmp_path, operator, reason):
    text = f"""g (float[n,4,6,6] x) => (float[n,4,k,l] y)
        <float[4,4,1,1] w, float[4,4,1,1] v, float[4] s = {{1.,1.,2.,2.}}>
        {{ a = Conv(x, w)\n b = {operator}\n y = Conv(b, v) }}"""
    np.savez(tmp_path / "x.npz", x=np.ones((8, 4, 6, 6), np.float32))
    with pytest.raises(TargetError, match=reason):
        qc.export(parse(text), "integer", tmp_path / "out", calibration=tmp_path / "x.npz")
    assert not (tmp_path / "out").exists()


def test_an_embedding_is_refused_before_any_work(parse, tmp_path, monkeypatch):
    text = (
        "g (int64[n,k] i) => (float[n,k,8] y) <float[32,16] t, float[16,8] w> { a = Gather(t, i)\n y = MatMul(a, w) }"
    )
    np.savez(tmp_path / "x.npz", i=np.ones((8, 4), np.int64))
    monkeypatch.setattr(selection, "choose", None)
    with pytest.raises(TargetError, match="no integer form of the embedding Gather"):
        qc.export(parse(text), "integer", tmp_path / "out", calibration=tmp_path / "x.npz")


def test_the_target_names_the_operators_that_there_are():
    assert set(OPERATORS) | {"Shape"} == INTEGER


def test_dyadic_numbers_have_31_bits():
    ratios = np.exp(np.random.default_rng(0).uniform(-12, 3, 2000))
    (multipliers,), exponents = dyadic([ratios])
    assert multipliers.min() >= 1 << 30
    assert multipliers.max() <= 1 << 31
    assert np.abs(np.ldexp(multipliers.astype(np.longdouble), -exponents) / ratios - 1).max() <= 2.0**-31


def alone(operator: str, shape: tuple[int, ...], constants: str = "") -> str:
    """An operator between two sites that copy."""
    size = shape[-1]
    return f"""<ir_version: 8, opset_import: ["": 20]> g (float[n,{size}] x) => (float[n,{size}] y)
        <float[{size},{size}] i{constants}> {{ a = MatMul(x, i)\n b = {operator}\n y = MatMul(b, i) }}"""


@pytest.mark.parametrize(
    ("operator", "constants", "bound"),
    [("Softmax(a)", "", 0.04), ("LayerNormalization(a, g)", ", float[16] g = {" + ",".join(["1.0"] * 16) + "}", 0.05)],
    ids=["shiftmax", "norm"],
)
def test_operators_of_attention_are_near_those_in_floats(parse, tmp_path, operator, constants, bound):
    """Shiftmax is within 0.036 of softmax by its linear pieces; codes of 8 bits come on top of a norm."""
    model = parse(alone(operator, (16,), constants))
    model.graph.initializers["i"].const_value = ir.tensor(np.eye(16, dtype=np.float32))
    x = 3 * np.random.default_rng(2).standard_normal((64, 16)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    artifact = qc.export(model, "integer", tmp_path / "out", calibration=tmp_path / "x.npz", method="rtn")
    want = Session(model).run({"x": x})["y"]
    assert np.abs(artifact.run({"x": x})["y"] - want).max() < bound
