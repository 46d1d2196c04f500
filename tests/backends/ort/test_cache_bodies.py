"""Functions that quantize and decode caches equal the definition of the formats, code for code."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends.ort.cache_bodies import dequantizing, quantizing
from qcompile.formats.cache_format import CacheFormat, parse_cache_format
from qcompile.ir.functions import DOMAIN, add_function
from qcompile.run.session import Session

WORDS = [
    "int8-token", "int4-token", "uint2-token", "uint8-token", "int4-g16", "uint4-g32", "uint5+3-g16", "uint5+3-g32",
    "int8-tensor", "int4-channel", "int2-channel",
]  # fmt: skip
FEATURES, HEADS = 64, 3


def both(fmt: CacheFormat) -> ir.Model:
    """A graph of keys to codes, scales and the keys that they stand for."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["B", HEADS, "L", FEATURES]))
    own = ir.Value(name="s", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, HEADS, 1, FEATURES]))
    encode, decode = quantizing(fmt, FEATURES, 23), dequantizing(fmt, FEATURES, 23)
    static = fmt.static is not None
    first = ir.Node(DOMAIN, encode.name, [x, own] if static else [x], num_outputs=1 if static else 2, name="encode")
    second = ir.Node(DOMAIN, decode.name, [first.outputs[0], own if static else first.outputs[1]], name="decode")
    outputs = [*first.outputs, second.outputs[0]]
    types = [ir.DataType.from_numpy(fmt.stored), *([] if static else [ir.DataType.FLOAT16]), ir.DataType.FLOAT]
    for value, name, dtype in zip(outputs, ["codes", *([] if static else ["scales"]), "held"], types, strict=True):
        value.name, value.type = name, ir.TensorType(dtype)
    inputs, imports = [x, own] if static else [x], {"": 23, DOMAIN: 1}
    graph = ir.Graph(inputs, outputs, nodes=[first, second], opset_imports=imports, name="both")
    model = ir.Model(graph, ir_version=10)
    for function in (encode, decode):
        add_function(model, function)
    return model


@pytest.mark.parametrize("word", WORDS)
def test_codes_scales_and_values(word: str) -> None:
    fmt = parse_cache_format(word)
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((2, HEADS, 7, FEATURES)) * rng.lognormal(0, 2, (2, HEADS, 7, 1))).astype(np.float32)
    x[0, 0, 0] = 0
    scale = np.exp(rng.standard_normal((1, HEADS, 1, FEATURES))).astype(np.float32) if fmt.static else None
    made = Session(both(fmt), optimize=False).run({"x": x} | ({} if scale is None else {"s": scale}))
    codes, numbers = fmt.encode(x, scale)
    np.testing.assert_array_equal(made["codes"], codes)
    assert made["codes"].dtype == fmt.stored
    if numbers is not None:
        np.testing.assert_array_equal(made["scales"], numbers)
    np.testing.assert_allclose(made["held"], fmt.decode(codes, numbers if scale is None else scale), rtol=1e-6)
