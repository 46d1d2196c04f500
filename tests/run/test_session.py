"""Graphs are run by onnxruntime, whose own mistakes must not become ours."""

from __future__ import annotations

from qcompile.run.data import example_inputs
from qcompile.run.session import evaluate


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
