"""A norm right behind an embedding is done to the table; where anything else would notice, it is left alone."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.api import rotate
from qcompile.passes.index import load_pass
from qcompile.passes.state import State
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.session import evaluate

#: What reads the lookup e [2,3,8] of the table t [9,8] and makes g, and whether the norm moves into the table.
CASES = {
    "layer norm": ("g = LayerNormalization<axis=-1, epsilon=0.01>(e, s, b)", True),
    "layer norm without a shift": ("g = LayerNormalization<axis=2>(e, s)", True),
    "rms norm": ("g = RMSNormalization<axis=-1, epsilon=0.1>(e, s)", True),
    "its shape is read too": ("n = LayerNormalization(e, s, b)\n d = Shape(e)\n g = Reshape(n, d)", True),
    "the lookup is read too": ("n = LayerNormalization(e, s, b)\n g = Add(n, e)", False),
    "its mean is read too": ("n, m = LayerNormalization(e, s, b)\n g = Add(n, m)", False),
    "over two axes": ("g = LayerNormalization<axis=1>(e, s2, b2)", False),
    "positions are added first": ("p = Add(e, q)\n g = LayerNormalization(p, s, b)", False),
}


def model_of(parse, body: str, head: str = "y = MatMul(g, w)"):
    return parse(
        f"""g (int64[2,3] ids) => (float[2,3,9] y)
        <float[9,8] t, float[8] s, float[8] b, float[3,8] s2, float[3,8] b2, float[3,8] q, float[8,9] w> {{
            e = Gather(t, ids)
            {body}
            {head} }}""",
        opset=23,
    )


@pytest.mark.parametrize("name", CASES)
def test_the_norm_moves_where_it_may_and_the_function_stays(parse, name):
    body, moves = CASES[name]
    model = model_of(parse, body)
    inputs = example_inputs(model)
    before = evaluate(model, inputs)
    assert load_pass("fold-tables")().apply(State(model)) == moves
    assert not (moves and any("Normalization" in node.op_type for node in model.graph))
    assert compare(before, evaluate(model, inputs))[0] < 1e-6


def test_a_tied_head_keeps_the_rows_as_they_were(parse):
    model = model_of(parse, "g = LayerNormalization(e, s, b)", "u = Transpose(t)\n y = MatMul(g, u)")
    inputs = example_inputs(model)
    before, table = evaluate(model, inputs), model.graph.initializers["t"].const_value.numpy().copy()
    state = State(model)
    load_pass("fold-tables")().apply(state)
    np.testing.assert_array_equal(model.graph.initializers["t"].const_value.numpy(), table)
    assert [entry.what for entry in state.declined] == ["sharing the table 't'"]
    assert compare(before, evaluate(model, inputs))[0] < 1e-6


def test_the_stream_behind_it_rotates(parse):
    model = model_of(parse, "g = LayerNormalization(e, s, b)")
    placement = rotate(model).placement
    assert [node.size for node in placement.offline] == [8]
    assert not placement.online
