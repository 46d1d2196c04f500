"""Functions that quantize and decode caches equal the definition of the formats, code for code."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends.ort.cache_bodies import dequantizing, quantizing
from qcompile.formats.cache_format import CacheFormat
from qcompile.formats.cache_words import parse_cache_format
from qcompile.ir.functions import DOMAIN, add_function
from qcompile.run.session import Session

WORDS = [
    "int8-token", "int4-token", "uint2-token", "uint8-token", "int4-g16", "uint4-g32", "uint5+3-g16", "uint5+3-g32",
    "int8-tensor", "int4-channel", "int2-channel", "fp8-tensor", "fp8-channel", "fp8-token", "fp8-g32", "mxfp4",
    "nvfp4", "eden1", "eden2", "eden4", "turboquant2", "turboquant4",
]  # fmt: skip
FEATURES, HEADS = 64, 3


def both(fmt: CacheFormat) -> ir.Model:
    """A graph of keys to codes, scales and the keys that they stand for."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["B", HEADS, "L", FEATURES]))
    own = ir.Value(name="s", type=ir.TensorType(ir.DataType.FLOAT))
    encode, decode = quantizing(fmt, FEATURES, 23), dequantizing(fmt, FEATURES, 23)
    static, numbers = [own] if fmt.static else [], bool(fmt.scale_numbers(FEATURES))
    first = ir.Node(DOMAIN, encode.name, [x, *static], num_outputs=1 + numbers, name="encode")
    second = ir.Node(DOMAIN, decode.name, [*first.outputs, *static], name="decode")
    outputs = [*first.outputs, second.outputs[0]]
    kinds = [fmt.stored, *([fmt.stored_scales] if numbers else []), np.dtype(np.float32)]
    names = ["codes", *(["scales"] if numbers else []), "held"]
    for value, name, kind in zip(outputs, names, kinds, strict=True):
        value.name, value.type = name, ir.TensorType(ir.DataType.from_numpy(kind))
    graph = ir.Graph([x, *static], outputs, nodes=[first, second], opset_imports={"": 23, DOMAIN: 1}, name="both")
    model = ir.Model(graph, ir_version=10)
    for function in (encode, decode):
        add_function(model, function)
    return model


@pytest.mark.parametrize("word", WORDS)
def test_codes_scales_and_values(word: str) -> None:
    fmt = parse_cache_format(word)
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((2, HEADS, 40, FEATURES)) * rng.lognormal(0, 2, (2, HEADS, 40, 1))).astype(np.float32)
    x[0, 0, 0], x[0, 0, 1, 3] = 0, -0.0
    x[0, 1, :3] *= np.float32([1e-30, 1e-38, 1e18])[:, None]
    scale = None
    if fmt.static:
        whole = fmt.static == "tensor"
        scale = np.exp(rng.standard_normal(1 if whole else (1, HEADS, 1, FEATURES))).astype(np.float32)
    made = Session(both(fmt), optimize=False).run({"x": x} | ({} if scale is None else {"s": scale}))
    codes, numbers = fmt.encode(x, scale)
    np.testing.assert_array_equal(made["codes"], codes)
    assert made["codes"].dtype == fmt.stored
    if numbers is not None:
        np.testing.assert_array_equal(made["scales"], numbers)
        assert made["scales"].dtype == fmt.stored_scales
    np.testing.assert_allclose(made["held"], fmt.decode(codes, numbers, scale), rtol=1e-6)
