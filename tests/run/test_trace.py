"""Traces: the kernels that ran, fused as onnxruntime fuses them, with shapes; bodies count for every step."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.errors import InputError
from qcompile.run.input_shapes import in_sizes
from qcompile.run.trace import trace


def test_a_trace_has_the_kernels_and_their_shapes(parse) -> None:
    model = parse("g (float[n,8] x) => (float[n,4] y) <float[8,4] a> { h = MatMul(x, a)\n y = Sigmoid(h) }")
    model.graph[0].name = "product"
    product, sigmoid = trace(model, {"x": np.ones((3, 8), np.float32)})
    assert (product.name, product.op, product.outputs) == ("product", "MatMul", ((3, 4),))
    assert product.inputs[0] == (3, 8)
    assert (sigmoid.op, sigmoid.inputs) == ("Sigmoid", ((3, 4),))


def test_kernels_of_bodies_are_there_for_every_step(parse) -> None:
    model = parse("""g (float[5,4] x, float[4] s) => (float[4] last, float[5,4] y) {
        last, y = Scan <num_scan_inputs = 1, body = step (float[4] a, float[4] b) => (float[4] c, float[4] d) {
            c = Add(a, b)
            d = Tanh(c) }> (s, x) }""")
    steps = trace(model, {"x": np.ones((5, 4), np.float32), "s": np.ones(4, np.float32)})
    assert [step.op for step in steps].count("Tanh") == 5


def test_large_weights_are_not_read(parse) -> None:
    def never() -> ir.Tensor:
        raise AssertionError("read")

    model = parse("g (float[n,256] x) => (float[n,256] y) <float[256,256] a> { y = MatMul(x, a) }")
    weight = model.graph.initializers["a"]
    weight.const_value = ir.LazyTensor(never, dtype=ir.DataType.FLOAT, shape=ir.Shape([256, 256]), name="a")
    (step,) = trace(model, {"x": np.ones((3, 256), np.float32)})
    assert step.outputs == ((3, 256),)
    assert weight.const_value.shape == (256, 256)  # the graph stays as it is


def test_inputs_take_other_sizes_along_open_dimensions(parse) -> None:
    model = parse("g (float[n,t,4] x, float[n,4] z) => (float[n,t,4] y) { y = Identity(x) }")
    batch = {"x": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "z": np.zeros((2, 4), np.float32)}
    found = in_sizes(batch, model, {"n": 1, "t": 7})
    assert (found["x"].shape, found["z"].shape) == ((1, 7, 4), (1, 4))
    assert np.array_equal(found["x"][0, 3], batch["x"][0, 0])  # repeated: values stay those that the model takes
    with pytest.raises(InputError, match="unknown dimension 'm'"):
        in_sizes(batch, model, {"m": 1})
    with pytest.raises(InputError, match="a size is 1 or more"):
        in_sizes(batch, model, {"n": 0})
