"""The layouts of runtimes: run where the runtime is here, spelled out byte by byte where it is not."""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from qcompile.errors import InputError
from qcompile.formats import FORMATS, quantize
from qcompile.formats.layouts import (
    from_block_scaled,
    from_gguf,
    from_matmulnbits,
    swizzle_scales,
    to_block_scaled,
    to_gguf,
    to_matmulnbits,
    unswizzle_scales,
)


def weight(rows=24, size=200):
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(0))


def run_matmulnbits(packed, rows, size, x):
    named = {"b": packed.b, "s": packed.scales} | ({} if packed.zero_points is None else {"z": packed.zero_points})
    inits = [numpy_helper.from_array(value.numpy(), name) for name, value in named.items()]
    node = helper.make_node(
        "MatMulNBits", ["x", *named], ["y"], domain="com.microsoft", K=size, N=rows, bits=packed.bits,
        block_size=packed.block_size, accuracy_level=1,
    )  # fmt: skip
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [x.shape[0], rows])]
    graph = helper.make_graph([node], "g", inputs, outputs, inits)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize(
    "name",
    [
        "int4-g32",
        "uint4-g32",
        "int8-g64",
        "uint8-g16",
        "int2-g32",
        "uint2-g64",
        "int4-signedmax-g128",
        "int4-e4m3",
        "mxint4",
    ],
)
def test_onnxruntime_reads_matmulnbits_as_we_do(name):
    q = quantize(weight(), FORMATS[name])
    packed = to_matmulnbits(q)
    x = np.random.default_rng(0).standard_normal((5, 200), dtype=np.float32)
    expected = x.astype(np.float64) @ q.dequantize().double().numpy().T
    assert np.abs(run_matmulnbits(packed, 24, 200, x) - expected).max() < 1e-6 * np.abs(expected).max()
    back = from_matmulnbits(packed, FORMATS[name], 200)
    assert torch.equal(back.codes, q.codes)
    assert torch.allclose(back.dequantize(), q.dequantize(), rtol=1e-6, atol=0)


def test_matmulnbits_refuses_what_the_operator_cannot_hold():
    for name, reason in {"int3-g32": "2, 4 or 8", "mxfp4": "not e2m1", "int4-channel": "power of two"}.items():
        with pytest.raises(InputError, match=reason):
            to_matmulnbits(quantize(weight(), FORMATS[name]))
    with pytest.raises(InputError, match="along its last axis"):
        to_matmulnbits(quantize(weight(), FORMATS["int4-g32"], axis=0))


@pytest.mark.parametrize("rows", [1, 100, 128, 300])
@pytest.mark.parametrize("groups", [1, 4, 7])
def test_the_swizzle_is_the_formula_of_the_cublas_manual(rows, groups):
    scales = torch.randint(1, 255, (rows, groups), dtype=torch.uint8)
    flat = swizzle_scales(scales)
    tiles = -(-groups // 4)
    assert flat.numel() == -(-rows // 128) * tiles * 512
    for r in range(0, rows, 13):
        for c in range(groups):
            tile = (r // 128) * tiles + c // 4
            assert flat[tile * 512 + (r % 32) * 16 + (r % 128 // 32) * 4 + c % 4] == scales[r, c]
    assert int((flat != 0).sum()) == rows * groups
    assert torch.equal(unswizzle_scales(flat, rows, groups), scales)


@pytest.mark.parametrize("swizzled", [False, True])
@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "mxfp8-e4m3", "mxfp6-e2m3"])
def test_block_scaled_round_trip(name, swizzled):
    q = quantize(weight(200, 96), FORMATS[name])
    packed = to_block_scaled(q, swizzled)
    back = from_block_scaled(packed, q.format, (200, 96))
    assert torch.equal(back.codes, q.codes)
    assert torch.equal(back.dequantize(), q.dequantize())


def test_nvfp4_bytes():
    x = torch.zeros(1, 16)
    x[0, :4] = torch.tensor([6.0, -0.5, 1.0, 3.0])
    packed = to_block_scaled(quantize(x, FORMATS["nvfp4"], tensor_scale=1.0))
    assert packed.codes[0, :2].tolist() == [0x97, 0x52]
    assert packed.scales.tolist() == [[0x38]]  # 1.0 in E4M3


def test_block_scaled_refuses_float_scales():
    with pytest.raises(InputError, match="E4M3 or E8M0"):
        to_block_scaled(quantize(weight(), FORMATS["e2m1-g16"]))


def q4_0_as_in_ggml(row):
    """quantize_row_q4_0_ref, with the codes from the stored scale and ties to even (GGML: from the float32 scale)."""
    d = np.float16(row[np.argmax(np.abs(row))] / -8)
    codes = np.clip(np.rint(row / np.float32(d)), -8, 7).astype(np.int64) + 8
    return d.tobytes() + bytes((codes[:16] | (codes[16:] << 4)).astype(np.uint8))


def test_gguf_q4_0_blocks():
    x = weight(6, 64)
    blocks = to_gguf(quantize(x, FORMATS["q4_0"]))
    expected = b"".join(q4_0_as_in_ggml(row) for row in x.view(-1, 32).numpy())
    assert bytes(blocks.flatten().tolist()) == expected


def read_gguf(block, name):
    """One block by the structures of GGML's ggml-common.h, spelled out: half the codes of a block are high nibbles."""
    if name == "nvfp4":
        scales = block[:4].view(ml_dtypes.float8_e4m3fn).astype(np.float32).repeat(16)
        parts = block[4:].reshape(4, 8)
        codes = np.concatenate([parts & 15, parts >> 4], 1).ravel()
        return scales * E2M1[codes]
    if name == "mxfp4":
        return np.float32(2.0) ** (int(block[0]) - 127) * E2M1[np.concatenate([block[1:] & 15, block[1:] >> 4])]
    scale = block[:2].view(np.float16).astype(np.float32)
    if name == "q8_0":
        return scale * block[2:].view(np.int8)
    low = np.concatenate([block[-16:] & 15, block[-16:] >> 4]).astype(np.int64)
    if name == "q4_0":
        return scale * (low - 8)
    fifth = int.from_bytes(block[2:6].tobytes(), "little")
    return scale * (low + 16 * np.array([fifth >> j & 1 for j in range(32)]) - 16)


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@pytest.mark.parametrize(
    ("name", "size"), [("q4_0", 18), ("q5_0", 22), ("q8_0", 34), ("mxfp4", 17), ("nvfp4", 36), ("int4-g32-fp16", 18)]
)
def test_gguf_blocks_and_back(name, size):
    q = quantize(weight(6, 90), FORMATS[name])
    blocks = to_gguf(q)
    kind = "q4_0" if name.startswith("int4") else name
    read = [read_gguf(block, kind) for block in blocks.view(-1, size).numpy()]
    scale = 1 if q.tensor_scale is None else q.tensor_scale.numpy()
    assert np.allclose(np.concatenate(read).reshape(6, -1)[:, :90] * scale, q.dequantize(), rtol=1e-6, atol=0)
    back = from_gguf(blocks, q.format, (6, 90), q.tensor_scale)
    assert torch.equal(back.codes, q.codes)
    assert torch.equal(back.dequantize(), q.dequantize())


def test_gguf_q4_1_stores_the_value_of_code_zero():
    q = quantize(weight(6, 96), FORMATS["q4_1"])
    blocks = to_gguf(q).view(-1, 20).numpy()
    scale, lowest = (blocks[:, i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
    codes = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], 1)
    read = (scale * codes + lowest).reshape(6, 96)
    assert np.abs(read - q.dequantize().numpy()).max() <= 2**-11 * np.abs(lowest).max()
    back = from_gguf(to_gguf(q), q.format, (6, 96))
    assert torch.equal(back.dequantize(), q.dequantize())


@pytest.mark.parametrize("name", ["int3-g32-fp16", "uint4-g32", "mxfp4-mrgptq", "mxint4", "int4-g32", "e2m1-g16"])
def test_gguf_refuses_what_it_has_no_block_for(name):
    with pytest.raises(InputError, match=f"no block for {name}"):
        to_gguf(quantize(weight(), FORMATS[name]))
