"""QuantizeLinear/DequantizeLinear pairs: what the file says, what onnxruntime fuses, what comes out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

import qcompile as qc
from qcompile.backends.ort.lowering import lower
from qcompile.choice import selection
from qcompile.compiler import Options, plan
from qcompile.errors import InputError
from qcompile.run.session import Session
from qcompile.targets.plans import planned
from qcompile.targets.registry import get_target, lowered_to

MLP = """g (float[n,32] x) => (float[n,8] y)
    <float[32,64] w, float[64] b, float[64,64] v, float[8,64] u, float[8] c>
    { a = MatMul(x, w)\n s = Add(a, b)\n h = Relu(s)\n m = MatMul(h, v)\n y = Gemm<transB=1>(m, u, c) }"""
IMAGES = """g (float[n,16,6,6] x) => (float[n,8,6,6] y) <float[32,16,1,1] w, float[32] b, float[8,32,1,1] v, float[8] c>
    { a = Conv(x, w, b)\n r = Relu(a)\n y = Conv(r, v, c) }"""
RESIDUAL = """g (float[n,16,6,6] x) => (float[n,8] y)
    <float[16,16,1,1] w, float[16] b, float[16,16,1,1] v, float[16,16,1,1] u, float[16,8] t>
    { a = Conv(x, w, b)\n r = Relu(a)\n c = Conv(r, v)\n s = Add(r, c)\n h = Relu(s)
    p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(h)\n d = Conv(p, u)\n e = Relu(d)
    m = GlobalAveragePool(e)\n k = Flatten(m)\n y = MatMul(k, t) }"""
KERNELS = """g (float[n,16,8,8] x) => (float[n,8,8,8] y)
    <float[32,16,3,3] w, float[32] b, float[32,1,3,3] d, float[32] e, float[32,8,1,1] p, float[32,8,2,2] t, float[8] c>
    { a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b)\n r = Relu(a)\n f = Conv<pads=[1,1,1,1], group=32>(r, d, e)
    h = Relu(f)\n m = Conv<group=4>(h, p)\n q = Relu(m)\n s = Add(q, h)
    y = ConvTranspose<strides=[2,2]>(s, t, c) }"""
GROUPED = """g (float[n,16,4,4] x) => (float[n,8,8,8] y) <float[16,4,2,2] t, float[8] c>
    { y = ConvTranspose<strides=[2,2], group=2>(x, t, c) }"""
SHAPES = {MLP: (64, 32), IMAGES: (16, 16, 6, 6), RESIDUAL: (64, 16, 6, 6), KERNELS: (16, 16, 8, 8),
          GROUPED: (16, 16, 4, 4)}  # fmt: skip


def data_of(model: str) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(SHAPES[model]).astype(np.float32)


def exported(parse, folder: Path, model: str, **options) -> qc.Artifact:
    np.savez(folder / "x.npz", x=data_of(model))
    return qc.export(parse(model), "qdq-int8", folder / "out", calibration=folder / "x.npz", **options)


def optimized(path: Path) -> Counter[str]:
    """Operators of the graph that onnxruntime makes of a file."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    options.log_severity_level = 4
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def as_written(path: Path, x: np.ndarray) -> np.ndarray:
    """The output of a file, operator by operator."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize("transforms", ["none", "auto"])
def test_products_become_integer_operators(parse, tmp_path, transforms):
    exported(parse, tmp_path, MLP, transforms=transforms)
    found = optimized(tmp_path / "out" / "model.onnx")
    products = {"QLinearMatMul", "MatMulIntegerToFloat", "QGemm"}
    assert sum(found[op] for op in products) == 3, found
    assert found["QLinearMatMul"] == 1  # its result is read in a static range at once
    assert found["DequantizeLinear"] <= 1, found  # no weight is decoded


@pytest.mark.parametrize("model", SHAPES, ids=["mlp", "images", "residual", "kernels", "grouped"])
@pytest.mark.parametrize("scheme", ["int8-channel/uint8-static", "int8-channel/int8-static"])
def test_the_file_computes_what_the_formats_define(parse, tmp_path, model, scheme):
    """But for the rounding of biases, which moves results on the border of two codes by a step, and what follows."""
    x = data_of(model)
    np.savez(tmp_path / "x.npz", x=x)
    wanted = plan(parse(model), Options("qdq-int8", formats=[scheme], calibration=tmp_path / "x.npz"))
    with lowered_to(get_target("reference"), wanted.clone()) as reference:
        want = reference({"x": x})["y"]
    with lowered_to(get_target("qdq-int8"), wanted.clone()) as run:
        fused = run({"x": x})["y"]
    lower(wanted, get_target("qdq-int8"), tmp_path)
    written = as_written(tmp_path / "model.onnx", x)
    exact = Session(parse(model)).run({"x": x})["y"]
    error = np.linalg.norm(want - exact)
    assert 1e-3 < error / np.linalg.norm(exact) < 3e-2
    assert np.linalg.norm(written - want) < 0.25 * error
    assert np.linalg.norm(fused - want) < 0.25 * error


@pytest.mark.parametrize("model", [MLP, IMAGES], ids=["mlp", "images"])
def test_the_file_holds_the_plans(parse, tmp_path, model):
    wanted = plan(parse(model), Options("qdq-int8", transforms="none"))
    plans = [own for _, own in planned(wanted)]
    lower(wanted, get_target("qdq-int8"), tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    sites = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    assert len(sites) == len(plans)
    for node, own in zip(sites, plans, strict=True):
        activation, weight = (made[name] for name in node.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        scale, zero = (constants[name] for name in activation.input[1:])
        assert (scale, zero) == (np.float32(own.calibrated.scale), own.calibrated.zero_point)
        codes, scales, zeros = (constants[name] for name in weight.input)
        assert codes.dtype == np.int8
        assert not zeros.any()
        axis = next(attribute.i for attribute in weight.attribute if attribute.name == "axis")
        matrix = np.moveaxis(codes, axis, 0).reshape(len(scales), -1) * scales[:, None]
        np.testing.assert_array_equal(matrix, own.weight.dequantize().numpy())
        if len(node.input) > 2:
            bias = made[node.input[2]]
            steps, factors = constants[bias.input[0]], [constants[name] for name in made[bias.input[1]].input]
            step = factors[0] * factors[1]  # a product, which onnxruntime computes as it loads the file
            assert steps.dtype == np.int32
            np.testing.assert_allclose(step, scale * scales, rtol=1e-6)


@pytest.mark.parametrize("model", SHAPES, ids=["mlp", "images", "residual", "kernels", "grouped"])
@pytest.mark.parametrize("scheme", ["int4-channel/uint8-static", "int4-g16/int8-static", "int4-g32"])
def test_four_bits_are_what_the_formats_define(parse, tmp_path, model, scheme):
    x, text = data_of(model), f'<ir_version: 10, opset_import: ["": 21]> {model}'
    np.savez(tmp_path / "x.npz", x=x)
    wanted = plan(parse(text), Options("qdq-int8", format_for={"*": scheme}, calibration=tmp_path / "x.npz"))
    assert {own.weight.format.bits for _, own in planned(wanted)} == {4}
    with lowered_to(get_target("reference"), wanted.clone()) as reference:
        want = reference({"x": x})["y"]
    lower(wanted, get_target("qdq-int8"), tmp_path)
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"), full_check=True)
    constants = {tensor.name: tensor for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer}
    codes = [tensor for tensor in constants.values() if tensor.data_type == onnx.TensorProto.INT4]
    assert codes
    assert all(len(tensor.raw_data) == -(-np.prod(tensor.dims) // 2) for tensor in codes)
    exact = Session(parse(text)).run({"x": x})["y"]
    error = np.linalg.norm(want - exact)
    assert 1e-2 < error / np.linalg.norm(exact) < 0.4
    assert np.linalg.norm(as_written(tmp_path / "model.onnx", x) - want) < 0.1 * error


def test_four_bits_need_newer_operators(parse, tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", x=data_of(MLP))
    monkeypatch.setattr(selection, "choose", None)  # before any work
    with pytest.raises(InputError, match="version 21"):
        qc.export(
            parse(f'<ir_version: 10, opset_import: ["": 20]> {MLP}'), "qdq-int8", tmp_path / "out",
            calibration=tmp_path / "x.npz", formats=["int4-g32"],
        )  # fmt: skip


def test_a_bias_behind_a_product_does_not_make_it_compute_in_floats(parse, tmp_path):
    """Behind a PRelu nothing quantizes the sum again, and onnxruntime makes a Gemm of product and bias."""
    model = """g (float[n,32] x) => (float[n,8] y) <float[32,64] w, float[64] b, float[64] p, float[64,8] v, float[8] c>
        { a = MatMul(x, w)\n s = Add(b, a)\n h = PRelu(s, p)\n m = MatMul(h, v)\n y = Add(m, c) }"""
    np.savez(tmp_path / "x.npz", x=data_of(MLP))
    qc.export(parse(model), "qdq-int8", tmp_path / "out", calibration=tmp_path / "x.npz", transforms="none")
    found = optimized(tmp_path / "out" / "model.onnx")
    assert (found["QGemm"], found["DequantizeLinear"]) == (2, 0), found


def test_what_is_enlarged_and_joined_stays_in_codes(parse, tmp_path):
    """The way up of detectors and of U-Nets: one range for what a Resize reads and writes, and a Concat in integers."""
    model = """g (float[n,16,4,4] x) => (float[n,8,8,8] y) <float[16,16,1,1] w, float[16,16,1,1] v, float[8,32,1,1] u,
        float[4] s = {1.0,1.0,2.0,2.0}> { a = Conv(x, w)\n b = Resize<mode="nearest">(a, , s)\n c = Conv(b, v)
        d = Concat<axis=1>(b, c)\n y = Conv(d, u) }"""
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).standard_normal((16, 16, 4, 4)).astype(np.float32))
    qc.export(parse(model), "qdq-int8", tmp_path / "out", calibration=tmp_path / "x.npz", transforms="none")
    found = optimized(tmp_path / "out" / "model.onnx")
    assert (found["QLinearConv"], found["QLinearConcat"], found["Resize"]) == (3, 1, 1), found
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 1), found


def test_kernels_of_every_kind_are_integer_but_for_those_that_onnxruntime_lacks(parse, tmp_path):
    x = data_of(KERNELS)
    np.savez(tmp_path / "x.npz", x=x)
    qc.export(parse(KERNELS), "qdq-int8", tmp_path / "out", calibration=tmp_path / "x.npz", transforms="none")
    found = optimized(tmp_path / "out" / "model.onnx")
    assert found["QLinearConv"] == 3, found
    assert found["QLinearAdd"] == found["ConvTranspose"] == 1, found


def test_a_static_scale_needs_data(parse, tmp_path):
    for target, formats in (("qdq-int8", []), ("reference", ["int8-channel/int8-static"])):
        with pytest.raises(
            qc.QCompileError, match="has a static scale, which must be calibrated: give data with --cal"
        ):
            qc.export(parse(MLP), target, tmp_path / "out", formats=formats)
    assert not (tmp_path / "out").exists()


def test_the_manifest_says_how_a_range_was_found(parse, tmp_path, monkeypatch):
    artifact = exported(parse, tmp_path, MLP)
    for site in artifact.manifest["sites"]:
        found = site["range"]
        assert found["errors"][found["calibrator"]] == min(found["errors"].values())
        assert site["activation"] == "uint8-static"
    assert artifact.manifest["implementation"]["rel_l2"] < 1e-3
    monkeypatch.setattr("qcompile.passes.quantize.adds_in_pairs", lambda site, scheme: False)
    (tmp_path / "free").mkdir()
    free = exported(parse, tmp_path / "free", MLP).manifest["quantization"]["rel_l2"]
    assert free < 0.02
    assert artifact.manifest["quantization"]["rel_l2"] < 1.3 * free  # what sums of 16 bits cost normal weights


GRAPH = """g (float[n,32] x) => (float[n,8] y) <float[32,64] w, float[64,64] v, float[64,64] t, float[64,8] u>
    { a = MatMul(x, w)\n h = Relu(a)\n k = Transpose(h)\n p = MatMul(h, k)\n s = Softmax(p)\n m = MatMul(s, h)
    b = MatMul(h, v)\n c = MatMul(m, t)\n d = Add(b, c)\n r = Relu(d)\n e = Add(r, h)\n y = MatMul(e, u) }"""


def test_a_value_that_might_have_been_parted_has_a_range(parse, tmp_path):
    """The node that stands where a space could be parted is gone when ranges are learned."""
    x = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    artifact = qc.export(parse(GRAPH), "qdq-int8", tmp_path / "out", calibration=tmp_path / "x.npz")
    assert [site["format"] for site in artifact.manifest["sites"]] == ["int8-channel"] * 4
    assert not [entry for entry in artifact.manifest["declined"] if "quantizing" in entry["what"]]


def test_static_and_dynamic_scales_compete_by_error(parse, tmp_path):
    """A sequence that is ten times as loud as another wants a scale of its own."""
    x = data_of(MLP) * np.where(np.arange(64) % 8 == 0, 10, 1)[:, None].astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    schemes = ["int8-channel/uint8-static", "int8-channel/int8-channel"]
    artifact = qc.export(
        parse(MLP), "reference", tmp_path / "out", calibration=tmp_path / "x.npz", formats=schemes, transforms="none"
    )
    first = next(site for site in artifact.manifest["sites"] if site["weight_shape"] == [32, 64])
    assert first["activation"] == "int8-channel"


def test_half_precision_graphs_keep_their_types(parse, tmp_path):
    half = """g (float16[n,32] x) => (float16[n,8] y) <float[32,8] w> { v = Cast<to=10>(w)\n y = MatMul(x, v) }"""
    x = data_of(MLP).astype(np.float16)
    np.savez(tmp_path / "x.npz", x=x)
    artifact = qc.export(parse(half), "qdq-int8", tmp_path / "out", calibration=tmp_path / "x.npz")
    got, want = artifact.run({"x": x})["y"], Session(parse(half)).run({"x": x})["y"]
    assert got.dtype == np.float16
    assert np.linalg.norm(got.astype(float) - want) < 0.02 * np.linalg.norm(want.astype(float))
    assert torch.isfinite(torch.from_numpy(got)).all()


def test_what_convolutions_hand_on_stays_integer(parse, tmp_path):
    """A sum of two, pooling and activations between convolutions: no operator of floats is left but at the ends."""
    x = data_of(RESIDUAL)
    np.savez(tmp_path / "x.npz", x=x)
    artifact = qc.export(
        parse(RESIDUAL), "qdq-int8", tmp_path / "out", calibration=tmp_path / "x.npz", transforms="none"
    )
    found = optimized(tmp_path / "out" / "model.onnx")
    assert found["QLinearConv"] == 3, found
    assert found["QLinearAdd"] == found["QLinearGlobalAveragePool"] == 1, found
    assert found["QuantizeLinear"] == 1, found  # of the input
    assert not found.keys() & {"Relu", "Add", "Conv", "DequantizeLinear", "FusedConv", "GlobalAveragePool"}, found
    exact = Session(parse(RESIDUAL)).run({"x": x})["y"]
    assert np.linalg.norm(artifact.run({"x": x})["y"] - exact) < 0.03 * np.linalg.norm(exact)
    assert artifact.manifest["engine"]["rel_l2"] < 0.01
