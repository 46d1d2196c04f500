"""Graphs are run by onnxruntime, whose own mistakes must not become ours."""

from __future__ import annotations

import numpy as np

from qcompile.run.data import example_inputs
from qcompile.run.session import evaluate, evaluate_double


def test_a_product_of_what_was_transposed_and_cast_does_not_end_the_process(parse):
    model = parse(
        """g (float[2,3,6] x) => (float[2,4,3] y, float[3,2,4] z) <float[6,4] w, float[4,4] v> {
            h = MatMul(x, w)
            t = Transpose<perm=[1,0,2]>(h)
            i = Cast<to=7>(t)
            f = Cast<to=1>(i)
            z = MatMul(f, v)
            s = Transpose<perm=[1,2,0]>(f)
            y = Identity(s) }"""
    )
    assert evaluate(model, example_inputs(model))["z"].shape == (3, 2, 4)


def test_an_older_batch_norm_in_double_is_that_of_inference(parse):
    model = parse(
        '<ir_version: 7, opset_import: ["": 12]> g (float[2,3,4,4] x) => (float[2,2,4,4] y) '
        "<float[2,3,1,1] w = {1,2,3,4,5,6}, float[2] s = {2,3}, float[2] b = {1,-1}, float[2] m = {0.5,-2}, "
        "float[2] v = {4,9}> { c = Conv(x, w) "
        "y = BatchNormalization <epsilon = 0.001, momentum = 0.9> (c, s, b, m, v) }"
    )
    inputs = example_inputs(model)
    single, double = evaluate(model, inputs)["y"], evaluate_double(model, inputs)["y"]
    np.testing.assert_allclose(double, single, rtol=1e-5, atol=1e-5)
