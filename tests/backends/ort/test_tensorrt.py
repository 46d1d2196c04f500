"""The form for TensorRT: what the file says, that its types fit, and that it computes what the graph beside it does."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from commands import refused
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import qcompile as qc
from qcompile.backends.ort.tensorrt import FILE
from qcompile.errors import InputError, TargetError
from qcompile.run.session import Session

MLP = """<ir_version: 10, opset_import: ["": 23]> g (float[n,3,40] x) => (float[n,3,32] y)
    <float[40,64] w, float[64] b, float[64,64] v, float[64,32] u>
    { a = MatMul(x, w)\n s = Add(a, b)\n h = Relu(s)\n m = MatMul(h, v)\n r = Relu(m)\n y = MatMul(r, u) }"""
IMAGES = """<ir_version: 10, opset_import: ["": 23]> g (float[n,16,6,6] x) => (float[n,8,6,6] y)
    <float[32,16,3,3] w, float[32] b, float[8,32,1,1] v>
    { a = Conv<pads=[1,1,1,1]>(x, w, b)\n r = Relu(a)\n y = Conv(r, v) }"""
DEEP = """<ir_version: 10, opset_import: ["": 23]> g (float[n,2,3,32] x) => (float[n,2,3,32] y)
    <float[32,64] w, float[64,32] v, float[32,32] u>
    { a = MatMul(x, w)\n h = Relu(a)\n m = MatMul(h, v)\n y = MatMul(m, u) }"""


class TRT_FP4DynamicQuantize(OpRun):
    op_domain = "trt"

    def _run(self, x, above, axis=None, block_size=None, scale_type=None):
        assert (axis, block_size, scale_type) == (-1, 16, TensorProto.FLOAT8E4M3FN)
        assert x.dtype in (np.float16, ml_dtypes.bfloat16)
        assert x.ndim in (2, 3)
        blocks = x.astype(np.float32).reshape(*x.shape[:-1], -1, 16)
        scales = (np.abs(blocks).max(-1) / 6 / above).clip(max=448).astype(ml_dtypes.float8_e4m3fn)
        steps = scales.astype(np.float32)[..., None] * above
        codes = np.divide(blocks, steps, out=np.zeros_like(blocks), where=steps > 0)
        return codes.clip(-6, 6).astype(ml_dtypes.float4_e2m1fn).reshape(x.shape), scales


class TRT_MXFP8DynamicQuantize(OpRun):
    op_domain = "trt"

    def _run(self, x, axis=None, block_size=None, output_dtype=None):
        assert (axis, block_size, output_dtype) == (-1, 32, TensorProto.FLOAT8E4M3FN)
        blocks = x.astype(np.float32).reshape(*x.shape[:-1], -1, 32)
        largest = np.abs(blocks).max(-1)
        exponents = np.ceil(np.log2(np.where(largest > 0, largest, 2.0**-127) / 448)).clip(-127, 127)
        codes = (blocks / np.exp2(exponents)[..., None]).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
        return codes.reshape(x.shape), (exponents + 127).astype(np.uint8)


class TRT_MXFP8DequantizeLinear(OpRun):
    op_domain = "trt"

    def _run(self, x, scales, axis=None, block_size=None, output_dtype=None):
        assert (axis, block_size, output_dtype) == (-1, 32, TensorProto.FLOAT16)
        steps = np.exp2(scales.astype(np.float32) - 127).repeat(32, -1)
        return ((x.astype(np.float32) * steps).astype(np.float16),)


OPERATORS = [TRT_FP4DynamicQuantize, TRT_MXFP8DynamicQuantize, TRT_MXFP8DequantizeLinear]


def exported(parse, folder, text, target="blackwell-fp4", **options):
    model = parse(text)
    shape = [size if isinstance(size, int) else 64 for size in model.graph.inputs[0].shape]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    np.savez(folder / "x.npz", x=x)
    artifact = qc.export(
        model, target, folder / "out", calibration=folder / "x.npz", form="tensorrt", transforms="none", **options
    )  # fmt: skip
    return artifact, onnx.load(folder / "out" / FILE), x[:4]


def agrees(model: onnx.ModelProto, folder, x: np.ndarray) -> bool:
    """Whether it computes what the graph beside it does, but for values between two codes.

    Operands and results of products have 16 bits, of which 11 count, so that few values end in the code beside: most
    rows agree to 11 bits, and the others to a part of what a step is.
    """
    have = ReferenceEvaluator(model, new_ops=OPERATORS).run(None, {"x": x})[0]
    want = Session(folder / "out" / "model.onnx").run({"x": x})["y"]
    lost = np.abs(have - want).max(-1) / np.abs(want).max()
    return np.median(lost) < 2**-10 and lost.max() < 0.2


def behind(model: onnx.ModelProto, name: str) -> list[str]:
    """Operators from an operand back to a constant or an input, the nearest first."""
    made, chain = {output: node for node in model.graph.node for output in node.output}, []
    while name in made:
        chain.append(made[name].op_type)
        name = made[name].input[0]
    return chain


def product(model: onnx.ModelProto, number: int) -> onnx.NodeProto:
    return [node for node in model.graph.node if node.op_type in ("MatMul", "Conv")][number]


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Types of values, as a network without conversions of its own has them."""
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant":
            types[node.output[0]] = attributes["value"].data_type if "value" in attributes else TensorProto.INT64
        elif node.op_type in ("DequantizeLinear", "QuantizeLinear"):
            types[node.output[0]] = types[node.input[1 if node.op_type == "DequantizeLinear" else 2]]
        elif node.domain == "trt":
            kinds = {"TRT_FP4DynamicQuantize": [TensorProto.FLOAT4E2M1, TensorProto.FLOAT8E4M3FN],
                     "TRT_MXFP8DynamicQuantize": [TensorProto.FLOAT8E4M3FN, TensorProto.UINT8],
                     "TRT_MXFP8DequantizeLinear": [attributes.get("output_dtype")]}[node.op_type]  # fmt: skip
            types |= dict(zip(node.output, kinds, strict=True))
        elif node.op_type in ("Cast", "Shape"):
            types[node.output[0]] = attributes.get("to", TensorProto.INT64)
        else:
            of = [types[name] for name in node.input[: 1 if node.op_type in ("Reshape", "Pad") else None] if name]
            assert len(set(of)) == 1, (node.op_type, of)
            types[node.output[0]] = of[0]
    return types


FP4 = ["Cast", "DequantizeLinear", "TRT_FP4DynamicQuantize", "Cast"]
CASES = [
    ("blackwell-fp4", None, FP4, ["Transpose", "Cast", "DequantizeLinear"]),
    ("blackwell-fp4", ["nvfp4"], FP4, ["Transpose", "Cast", "DequantizeLinear"]),
    (
        "blackwell-fp4", ["mxfp8-e4m3-rceil"], ["TRT_MXFP8DequantizeLinear", "TRT_MXFP8DynamicQuantize", "Cast"],
        ["Transpose", "TRT_MXFP8DequantizeLinear"],
    ),
    ("blackwell-fp4", ["fp8-e4m3-channel"], ["DequantizeLinear", "QuantizeLinear"], ["DequantizeLinear"]),
    ("qdq-int8", None, ["DequantizeLinear", "QuantizeLinear"], ["DequantizeLinear"]),
]  # fmt: skip


@pytest.mark.parametrize(("target", "formats", "of_input", "of_weight"), CASES)
def test_each_format_is_spelled_as_the_parser_reads_it(parse, tmp_path, target, formats, of_input, of_weight):
    _, model, x = exported(parse, tmp_path, MLP, target, formats=formats)
    onnx.checker.check_model(model)
    node = product(model, 1)
    assert behind(model, node.input[0])[: len(of_input)] == of_input
    assert behind(model, node.input[1]) == of_weight
    types_of(model)
    assert not model.functions
    assert all(node.domain in ("", "trt") for node in model.graph.node)
    assert agrees(model, tmp_path, x)


def test_products_of_values_with_more_axes_are_flattened_and_put_back(parse, tmp_path):
    _, model, x = exported(parse, tmp_path, DEEP)
    types_of(model)
    assert agrees(model, tmp_path, x)


def test_biases_of_convolutions_are_floats_and_zero_is_code_0(parse, tmp_path):
    _, model, x = exported(parse, tmp_path, IMAGES, "qdq-int8")
    node, constants = product(model, 0), {tensor.name: tensor for tensor in model.graph.initializer}
    assert constants[node.input[2]].data_type == TensorProto.FLOAT
    zeros = [constants[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert all(zero.data_type == TensorProto.INT8 and not numpy_helper.to_array(zero).any() for zero in zeros)
    assert agrees(model, tmp_path, x)


def test_inputs_beyond_16_bits_are_bfloat16(parse, tmp_path):
    model = parse(
        MLP.replace("MatMul(x, w)", "MatMul(z, w)").replace(
            "{ a", "{ k = Constant<value_float=1e6>()\n z = Mul(x, k)\n a"
        )
    )
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).standard_normal((64, 3, 40)).astype(np.float32))
    qc.export(
        model, "blackwell-fp4", tmp_path / "out", calibration=tmp_path / "x.npz", form="tensorrt", transforms="none"
    )
    written = onnx.load(tmp_path / "out" / FILE)
    types = types_of(written)
    assert types[product(written, 0).input[0]] == TensorProto.BFLOAT16


@pytest.mark.parametrize(
    ("target", "scheme", "why"),
    [
        ("blackwell-fp4", "nvfp4/int8-static", "in float32, without a word, if inputs are not NVFP4"),
        ("blackwell-fp4", "fp8-e4m3-channel/fp8-e4m3-channel", "static range"),
        ("blackwell-fp4", "mxfp8-e4m3/mxfp8-e4m3", "rounds scales of MXFP8 up"),
        ("qdq-int8", "int8-channel/uint8-static", "no zero point but 0"),
    ],
)
def test_what_would_fall_back_is_refused_before_any_work(tmp_path, target, scheme, why):
    message = refused(
        tmp_path, "export", tmp_path / "none.onnx", "-o", tmp_path / "out", "--target", target, "--form", "tensorrt",
        "--formats", scheme,
    )  # fmt: skip
    assert why in message
    assert "in form 'tensorrt'" in message


def test_mxfp4_has_no_such_form():
    with pytest.raises(TargetError, match="no form 'tensorrt'"):
        qc.export("none.onnx", "blackwell-mxfp4", "out", form="tensorrt")


def test_older_operators_are_refused_before_calibration(parse, tmp_path):
    with pytest.raises(InputError, match="needs operators of version 23 on target 'blackwell-fp4': the graph has 21"):
        exported(parse, tmp_path, MLP.replace("23", "21"))
    assert not (tmp_path / "out").exists()
