"""QONNX files: each rounding is an operator, and the format's own executor computes what the reference does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from commands import refused

from qcompile.backends.ort.qonnx import FILE, write_qonnx
from qcompile.compiler import Options, plan
from qcompile.targets.registry import get_target, lowered_to

NETWORK = """<ir_version: 8, opset_import: ["": 17]> g (float[n,8,6,6] x) => (float[n,4] y)
    <float[16,8,3,3] w, float[16] b, float[16,1,3,3] d, float[16,16,1,1] v, float[16,4] t>
    { a = Conv<pads=[1,1,1,1]>(x, w, b)\n r = Relu(a)\n c = Conv<group=16>(r, d)\n e = Conv(c, v)\n s = Add(c, e)
    m = GlobalAveragePool(s)\n f = Flatten(m)\n y = MatMul(f, t) }"""
SCHEMES = [
    "int8-channel/uint8-static",
    "int4-g16",
    "uint4-g32",
    "nvfp4/int8-static",
    "fp8-e4m3-channel/fp8-e4m3-static",
]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_executor_of_qonnx_computes_what_the_formats_define(parse, tmp_path, monkeypatch, scheme):
    pytest.importorskip("qonnx")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    monkeypatch.setattr(onnx, "IR_VERSION", 10)  # it runs each operator as a file of the newest version
    x = np.random.default_rng(1).standard_normal((16, 8, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    wanted = plan(parse(NETWORK), Options("reference", format_for={"*": scheme}, calibration=tmp_path / "x.npz"))
    with lowered_to(get_target("reference"), wanted.clone()) as reference:
        want = reference({"x": x[:1]})["y"]
    write_qonnx(wanted, tmp_path)
    (tmp_path / FILE).rename(tmp_path / "fixed.onnx")
    model = onnx.load(tmp_path / "fixed.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    have = execute_onnx(ModelWrapper(model).transform(InferShapes()), {"x": x[:1]})["y"]
    assert np.linalg.norm(have - want) < 1e-5 * np.linalg.norm(want)


def test_every_rounding_is_an_operator(parse, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).standard_normal((16, 8, 6, 6)).astype(np.float32))
    wanted = plan(parse(NETWORK), Options("qdq-int8", calibration=tmp_path / "x.npz", transforms="none"))
    write_qonnx(wanted, tmp_path)
    model = onnx.load(tmp_path / FILE)
    quants = [node for node in model.graph.node if node.domain == "qonnx.custom_op.general"]
    assert [node.op_type for node in quants] == [
        "IntQuant"
    ] * 11  # weights, input, results of kernels, sum, mean, and what is flat
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul"):
            chain = made[node.input[1]]
            while chain.op_type != "IntQuant":
                chain = made[chain.input[0]]


def test_scales_that_are_computed_as_it_runs_are_refused_before_any_work(tmp_path):
    message = refused(
        tmp_path, "export", tmp_path / "none.onnx", "-o", tmp_path / "out", "--target", "reference", "--form", "qonnx",
        "--formats", "int8-channel/int8-channel",
    )  # fmt: skip
    assert "constant scales" in message
