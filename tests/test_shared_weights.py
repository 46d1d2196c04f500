"""A weight that several operators read stays one constant: in the graph, in its rounding, and in every artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from commands import done

import qcompile as qc
from qcompile.choice.export_options import Options
from qcompile.compiler import plan, prepare
from qcompile.ir.files import save_model
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.session import evaluate
from qcompile.targets.plans import planned

#: Two products with one matrix, as exporters write them.
SHARED = {
    "as it is": "a = MatMul(x, w)\n r = Relu(a)\n b = MatMul(r, w)\n s = Sigmoid(b)\n y = MatMul(s, o)",
    "through Identity": """v = Identity(w)\n u = Identity(v)\n a = MatMul(x, v)\n r = Relu(a)\n b = MatMul(r, u)
        s = Sigmoid(b)\n y = MatMul(s, o)""",
    "each transposed": """v = Transpose<perm=[1, 0]>(w)\n u = Transpose<perm=[1, 0]>(w)\n a = MatMul(x, v)\n r = Relu(a)
        b = MatMul(r, u)\n s = Sigmoid(b)\n y = MatMul(s, o)""",
    "in two branches": """s = If(c) <then_branch = t () => (p) { v = Transpose(w)\n a = MatMul(x, v)\n p = Relu(a) },
        else_branch = e () => (q) { v = Transpose(w)\n u = Identity(v)\n b = MatMul(x, u)\n q = Sigmoid(b) }>
        y = MatMul(s, o)""",
}
SHAPES = "(float[n,64] x, bool c) => (float[n,16] y) <float[64,64] w, float[64,16] o>"


def graph(parse: Callable[..., ir.Model], name: str) -> ir.Model:
    return parse(f"g {SHAPES} {{ {SHARED[name]} }}", opset=17)


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.standard_normal((256, 64)).astype(np.float32), c=np.array(True))
    return path


@pytest.mark.parametrize("name", SHARED)
def test_a_shared_weight_is_one_constant(parse, name):
    model = graph(parse, name)
    inputs = example_inputs(model)
    want, made = evaluate(model, inputs), prepare(model).model
    assert sorted(v.shape.numpy() for v in made.graph.initializers.values() if v.shape.rank() == 2) == [
        (64, 16),
        (64, 64),
    ]
    assert compare(want, evaluate(made, inputs))[0] < 1e-6


@pytest.mark.parametrize("target", ["cpu-int4", "cpu-int8", "reference"])
@pytest.mark.parametrize("name", SHARED)
def test_an_artifact_holds_a_shared_weight_once(parse, calibration, tmp_path, name, target):
    qc.export(graph(parse, name), target, tmp_path / "out", calibration=calibration)
    names = ir.load(tmp_path / "out" / "model.onnx").graph.initializers
    packed = [name for name in names if name.endswith((".codes", ".weight")) and not name.startswith("o.")]
    assert len(packed) == 1


@pytest.mark.parametrize("method", ["rtn", "search", "gptq"])
def test_a_shared_weight_is_rounded_once(parse, calibration, method):
    options = Options("reference", calibration=calibration, method=method)
    model = plan(graph(parse, "through Identity"), options)
    first, second, other = (found.weight for _, found in planned(model))
    assert first is second is not other


def test_a_shared_weight_is_paid_once_and_has_one_format(parse, tmp_path):
    """Half of what both sites would take together is enough for it."""
    model = parse(f"g {SHAPES} {{ {SHARED['as it is']} }}", opset=17)
    bytes_ = (64 * 64 + 64 * 16) * (8 + 0.5) / 8
    manifest = qc.export(
        model, "cpu-int4", tmp_path / "out", formats=["int4-g32", "int8-g32"], budget={"bytes": bytes_ + 1}
    ).manifest
    assert [site["format"] for site in manifest["sites"]] == ["int8-g32"] * 3


def test_a_weight_that_is_also_read_within_keeps_the_inner_format(parse, tmp_path):
    text = "a = MatMul(x, w)\n r = Relu(a)\n y = MatMul(r, w)"
    model = parse(f"g (float[n,64] x) => (float[n,64] y) <float[64,64] w> {{ {text} }}", opset=17)
    manifest = qc.export(model, "cpu-int4", tmp_path / "out").manifest
    assert [site["format"] for site in manifest["sites"]] == ["int4-g32"] * 2
    assert any("stored once" in entry["reason"] for entry in manifest["declined"])


# ---- a table and a head ----------------------------------------------------------------------------------------------

BODY = """h0 = Gather(t, ids)\n n0 = RMSNormalization(h0, g0)\n a = MatMul(n0, w)\n r = Relu(a)\n b = MatMul(r, v)
    h1 = Add(h0, b)\n n = RMSNormalization(h1, g1)\n """
HEADS = {
    "behind norms that subtract the mean": "u = Transpose<perm=[1, 0]>(t)\n y = MatMul(n, u)",
    "transposed": "u = Transpose<perm=[1, 0]>(t)\n y = MatMul(n, u)",
    "one tensor": "f = Reshape(n, s)\n y = Gemm<transB=1>(f, t)",
    "behind a table without a scale": "u = Transpose<perm=[1, 0]>(t)\n m = Div(n, g1)\n y = MatMul(m, u)",
}


def decoder(parse: Callable[..., ir.Model], head: str) -> ir.Model:
    shape = "n" if head == "one tensor" else "b,l"
    body = BODY.replace("RMSN", "LayerN") if "mean" in head else BODY
    return parse(
        f"""g (int64[b,l] ids) => (float[{shape},600] y) <float[600,64] t, float[64] g0, float[64,128] w,
        float[128,64] v, float[64] g1, int64[2] s = {{-1, 64}}> {{ {body} {HEADS[head]} }}""", opset=23,
    )  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_a_rotated_graph_that_did_not_turn_holds_a_shared_table_once(parse, tmp_path, head):
    save_model(decoder(parse, head), tmp_path / "m.onnx")
    done("rotate", tmp_path / "m.onnx", "-o", tmp_path / "r.onnx", "--transforms", "none")
    before, after = ((tmp_path / name).stat().st_size for name in ("m.onnx", "r.onnx"))
    assert after < 1.1 * before


@pytest.mark.parametrize("transforms", ["none", "hadamard"])
@pytest.mark.parametrize("target", ["cpu-int4", "reference"])
@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_is_the_table_is_stored_with_it(parse, tmp_path, head, target, transforms):
    artifact = qc.export(decoder(parse, head), target, tmp_path / "out", transforms=transforms)
    names = ir.load(tmp_path / "out" / "model.onnx").graph.initializers.values()
    assert sum(value.name.endswith(".codes") and value.const_value.size >= 600 * 64 for value in names) == 1
    assert artifact.manifest["equivalence"]["rel_l2"] < 1e-5
    assert artifact.manifest["quantization"]["rel_l2"] < 0.25
    assert [site["weight"] for site in artifact.manifest["sites"] if site["op"] == "Gather"] == [
        site["shares"] for site in artifact.manifest["sites"] if "shares" in site
    ]


#: A weight that two operators read, by what they are.
TWICE = {
    "MatMul": "g (float[n,32] x) => (float[n,8] y) <float[32,32] w, float[32,8] v>"
    " { a = MatMul(x, w)\n h = Relu(a)\n c = MatMul(h, w)\n d = Relu(c)\n y = MatMul(d, v) }",
    "Gemm": "g (float[n,32] x) => (float[n,8] y) <float[32,32] w, float[32] b, float[32,8] v>"
    " { a = Gemm<transB=1>(x, w, b)\n h = Relu(a)\n c = Gemm<transB=1>(h, w, b)\n d = Relu(c)\n y = MatMul(d, v) }",
    "Conv": "g (float[n,8,6,6] x) => (float[n,8,6,6] y) <float[8,8,3,3] w, float[8] b, float[8,8,1,1] v>"
    " { a = Conv<pads=[1,1,1,1]>(x, w, b)\n h = Relu(a)\n c = Conv<pads=[1,1,1,1]>(h, w, b)\n"
    " d = Relu(c)\n y = Conv(d, v) }",
}


@pytest.mark.parametrize("target", ["qdq-int8", "integer"])
@pytest.mark.parametrize("name", TWICE)
def test_static_artifacts_load_where_x86_lacks_vnni(parse, tmp_path, name, target):
    """There the runner asks for exact sums, and onnxruntime makes unsigned codes of each weight."""
    model = parse(TWICE[name])
    shape = [size if isinstance(size, int) else 64 for size in model.graph.inputs[0].shape]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    qc.export(model, target, tmp_path / "out", calibration=tmp_path / "x.npz", transforms="none", method="rtn")
    stored = ir.load(tmp_path / "out" / "model.onnx").graph.initializers.values()
    codes = [value.name for value in stored if value.dtype == ir.DataType.INT8 and value.name.startswith("w.weight")]
    assert len(codes) == 1
    results = []
    for exact in ("0", "1"):
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", exact)
        path = tmp_path / "out" / "model.onnx"
        results.append(onnxruntime.InferenceSession(path, options).run(None, {"x": x})[0])
    np.testing.assert_array_equal(*results)
