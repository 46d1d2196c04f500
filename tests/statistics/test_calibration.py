"""What is kept of calibration data: along which axis, and of values that the data never reaches."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from stack_cases import body_model

import qcompile as qc
from qcompile.analysis.patches import Reading
from qcompile.ir.graph import distinguish
from qcompile.run.data import Data, example_inputs
from qcompile.statistics.calibration import collect

GRAPHS = {
    # the stream of a residual network, whose channels are read by 1x1 convolutions and by an Add
    "images": """g (float[n,32,4,4] x) => (float[n,8,4,4] y)
        <float[64,32,1,1] w, float[32,64,1,1] v, float[8,32,1,1] u>
        { s = Mul(x, x)\n a = Conv(s, w)\n b = Relu(a)\n c = Conv(b, v)\n t = Add(s, c)\n y = Conv(t, u) }""",
    # one value, whose channels a convolution reads and whose places a product reads
    "two axes": """g (float[n,32,16] x) => (float[n,64,16] y, float[n,32,64] z) <float[64,32,1] w, float[16,64] v>
        { s = Relu(x)\n y = Conv(s, w)\n z = MatMul(s, v) }""",
    # two experts: the second one gets no row
    "experts": """g (float[n,32] x) => (float[k,16] y, float[m,16] z) <float[32,16] w, float[32,16] v>
        { one = Constant<value_ints=[1]>()\n low = Constant<value_float=-1.0>()
        t = ReduceSumSquare<keepdims=0>(x, one)\n p = Greater(t, low)\n q = Not(p)
        a = Compress<axis=0>(x, p)\n b = Compress<axis=0>(x, q)\n y = MatMul(a, w)\n z = MatMul(b, v) }""",
}
SHAPES = {"images": (3, 32, 4, 4), "two axes": (3, 32, 16), "experts": (40, 32)}


@pytest.mark.parametrize("name", GRAPHS)
def test_features_are_found_and_what_gets_no_row_is_said(parse, tmp_path, name):
    x = np.random.default_rng(5).standard_normal(SHAPES[name]).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    artifact = qc.export(parse(GRAPHS[name]), "blackwell-fp4", tmp_path / "out", calibration=tmp_path / "x.npz")
    assert artifact.manifest["equivalence"]["rel_l2"] < 1e-5
    assert artifact.manifest["quantization"]["rel_l2"] < 0.2
    assert artifact.run({"x": x})["y"].shape[0] == len(x)
    reasons = {entry["reason"] for entry in artifact.manifest["declined"]}
    assert ("another site reads 's' along another axis" in reasons) == (name == "two axes")
    assert ("the data never reaches it" in reasons) == (name == "experts")


def test_data_that_is_no_number_somewhere_inside_is_refused(parse, tmp_path):
    model = parse("""g (float[n,32] x) => (float[n,16] y) <float[32,16] w> { a = Sqrt(x)\n y = MatMul(a, w) }""")
    x = np.ones((40, 32), np.float32)
    x[3, 4] = -1
    np.savez(tmp_path / "x.npz", x=x)
    with pytest.raises(qc.QCompileError, match="the data gives NaN or infinity at 'a'"):
        qc.export(model, "blackwell-fp4", tmp_path / "out", calibration=tmp_path / "x.npz")


def test_weights_in_bfloat16_have_sensitivities(parse, tmp_path):
    """onnxruntime takes no array of that type, so the noise is added in float32."""
    model = parse(
        """g (float[n,32] x) => (float[n,32] y) <float[32,32] w, float[32,32] v>
        { a = Cast<to=1>(w)\n b = Cast<to=1>(v)\n h = MatMul(x, a)\n r = Relu(h)\n y = MatMul(r, b) }"""
    )
    for weight in model.graph.initializers.values():
        array = weight.const_value.numpy().astype(ml_dtypes.bfloat16)
        weight.const_value, weight.type = ir.tensor(array, name=weight.name), ir.TensorType(ir.DataType.BFLOAT16)
    manifest = qc.export(model, "cpu-int4", tmp_path / "out", budget={"bits": 6}, formats=["int4-g32", "int8-g32"])
    assert all(site["alpha"] > 0 for site in manifest.manifest["sites"])


@pytest.mark.parametrize(("name", "steps"), [("rounds", 2), ("steps", 3), ("branches", 1)])
def test_bodies_show_what_they_compute(name, steps):
    """Both rounds of a Loop, every step of a Scan, the branch of an If that is taken."""
    model = body_model(name)
    distinguish(model)
    data = Data((example_inputs(model),), random=False)
    weights = {key: value.const_value.numpy() for key, value in model.graph.initializers.items()}
    h = data.batches[0]["x"] @ weights["w1"]
    state, seen = h[:, 0] if name == "steps" else h, []
    for step in range(steps):
        seen.append(np.maximum(state @ weights["m"], 0))
        state = seen[-1] @ weights["n"] + (h[:, step] if name == "steps" else state)
    inner = {node.op_type: node.outputs[0].name for node in model.graph.all_nodes() if node.op_type in ("Relu", "Tanh")}
    found = collect(model, {name: Reading(name, -1) for name in inner.values()}, data, max_rows=1)
    assert list(found) == [inner["Relu"]]
    rows = np.concatenate([part.reshape(-1, 64) for part in seen])
    np.testing.assert_allclose(found[inner["Relu"]].sample, rows, rtol=1e-4, atol=1e-4)


UNSEEN = {
    "a branch within a loop": """t = Loop (n, yes, x) <body = step (int64 i, bool c, float[2,32] s) => (d, u) {
        d = Identity(c)
        e = Cast<to=9>(i)
        u = If (e) <then_branch = p () => (q) { r = Relu(s)
            q = MatMul(r, w) }, else_branch = o () => (q2) { q2 = Identity(s) }> }>""",
    "a state that grows": """t = Loop (n, yes, x) <body = step (int64 i, bool c, float[k,32] s) => (d, u) {
        d = Identity(c)
        r = Relu(s)
        v = MatMul(r, w)
        u = Concat<axis=0>(v, s) }>""",
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_may_have_another_number_of_rows_at_every_step_stays_inside(parse, tmp_path, name):
    model = parse(
        f"""g (float[2,32] x) => (float[j,32] y) <float[32,32] w, int64 n, bool yes> {{ {UNSEEN[name]}
        y = MatMul(t, w) }}""", n=2, yes=True,
    )  # fmt: skip
    np.savez(tmp_path / "x.npz", x=np.ones((2, 32), np.float32))
    artifact = qc.export(model, "cpu-int8", tmp_path / "out", calibration=tmp_path / "x.npz")
    reasons = {entry["reason"] for entry in artifact.manifest["declined"] if entry["what"] == "calibrating it"}
    assert reasons == {"the body that it stands in may read another number of rows at every step"}
