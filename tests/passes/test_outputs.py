"""Outputs keep their names and their order, whatever operator in front of them a pass removes."""

from __future__ import annotations

import pytest

from qcompile.api import rotate
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.session import evaluate

GRAPHS = {
    "a norm behind a lookup": """g (int64[2,5] ids) => (float[2,5,8] y) <float[8] s, float[8] b, float[20,8] w>
        { a = Gather(w, ids)\n y = LayerNormalization(a, s, b) }""",
    "a scale": """g (float[2,5,8] x) => (float[2,5,8] y) <float[8,8] w, float[8] c>
        { a = MatMul(x, w)\n y = Mul(a, c) }""",
    "one value under two names": """g (float[2,5,8] x) => (float[2,5,8] y, float[2,5,8] z) <float[8,8] w>
        { a = MatMul(x, w)\n y = Identity(a)\n z = Identity(a) }""",
    "an input": """g (float[2,5,8] x) => (float[2,5,8] y, float[2,5,8] z) <float[8,8] w>
        { y = Identity(x)\n z = MatMul(x, w) }""",
    "the weight of a site": """g (float[2,5,8] x) => (float[2,5,8] y, float[8,8] w) <float[8,8] w>
        { a = Relu(x)\n y = MatMul(a, w) }""",
    "a constant": """g (float[2,5,8] x) => (float[8,8] y, float[2,5,8] z) <float[8,8] w, float[8,8] v>
        { y = Identity(v)\n z = MatMul(x, w) }""",
}


@pytest.mark.parametrize("transforms", ["none", "hadamard"])
@pytest.mark.parametrize("name", GRAPHS)
def test_outputs_keep_their_names(parse, name, transforms):
    model = parse(GRAPHS[name], opset=17)
    names, inputs = [value.name for value in model.graph.outputs], example_inputs(model)
    want = evaluate(model, inputs)
    got = evaluate(rotate(model, transforms=transforms).prepared.model, inputs)
    assert [*got] == names
    assert compare(want, got)[0] <= 1e-5
