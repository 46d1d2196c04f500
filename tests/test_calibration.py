"""What is kept of calibration data: along which axis, and of values that the data never reaches."""

from __future__ import annotations

import numpy as np
import pytest

import qcompile as qc

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
        { one = Constant<value_ints=[1]>()\n t = ReduceSumSquare<keepdims=0>(x, one)\n low = Constant<value_float=-1.0>()
        p = Greater(t, low)\n q = Not(p)\n a = Compress<axis=0>(x, p)\n b = Compress<axis=0>(x, q)
        y = MatMul(a, w)\n z = MatMul(b, v) }""",
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


def test_random_data_that_is_no_number_is_called_random(parse, tmp_path):
    model = parse("""g (float[n,32] x) => (float[n,16] y) <float[32,16] w> { a = Sqrt(x)\n y = MatMul(a, w) }""")
    with pytest.raises(qc.QCompileError, match="random data, drawn because .* gives NaN or infinity at 'a'"):
        qc.export(model, "blackwell-fp4", tmp_path / "out")
