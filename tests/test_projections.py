"""Projections that are shaped into heads and then cut: cut first, the parts have heads of their own."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.capture import example_inputs
from qcompile.evaluate import compare, evaluate
from qcompile.preparation import prepare
from qcompile.projections import split_projection

SLICES = """q1 = Slice(r, zero, one, axis)
    k1 = Slice(r, one, two, axis)
    v1 = Slice(r, two, three, axis)
    q = Squeeze(q1, axis)
    k = Squeeze(k1, axis)
    v = Squeeze(v1, axis)"""

SPLIT = """q1, k1, v1 = Split<axis=2, num_outputs=3>(r)
    q = Squeeze(q1, axis)
    k = Squeeze(k1, axis)
    v = Squeeze(v1, axis)"""

LOOKUPS = """q = Gather<axis=2>(r, i0)
    k = Gather<axis=2>(r, i1)
    v = Gather<axis=-3>(r, i2)"""

MOVED = """t = Transpose<perm=[2,0,1,3,4]>(r)
    q = Gather<axis=0>(t, i0)
    k = Gather<axis=0>(t, i1)
    v = Gather<axis=0>(t, i2)"""

#: How r [2,5,3,2,4] becomes q, k and v [2,5,2,4], and whether they get axes of their own.
CASES = {
    "slices": (SLICES, True),
    "split": (SPLIT, True),
    "lookups": (LOOKUPS, True),
    "moved first": (MOVED, True),
    "one part is not read": (LOOKUPS.replace("i2", "i1"), False),
    "something else reads it": (
        SLICES.replace("v =", "u =") + "\n e = ReduceMax<keepdims=0>(r, axis)\n v = Add(u, e)", False,
    ),
    "cut along the heads": (
        "a0, a1 = Split<axis=3, num_outputs=2>(r)\n r0 = Concat<axis=3>(a1, a0)\n" + SPLIT.replace("(r)", "(r0)"),
        False,
    ),
}  # fmt: skip


def model_of(parse, body: str, shape: str = "s"):
    return parse(
        f"""g (float[2,5,6] x) => (float[2,5,3] y)
        <float[6,24] w, float[8,3] o, int64[5] s, int64[3] rest, int64[1] zero, int64[1] one,
         int64[1] two, int64[1] three, int64[1] axis, int64 i0, int64 i1, int64 i2> {{
            p = MatMul(x, w)
            d = Shape<start=0, end=2>(x)
            c = Concat<axis=0>(d, rest)
            r = Reshape(p, {shape})
            {body}
            a = Sigmoid(q)
            b = Mul(a, k)
            z = Add(b, v)
            n = Constant<value = int64[3] {{2, 5, 8}}>()
            m = Reshape(z, n)
            y = MatMul(m, o) }}""",
        s=np.array([2, 5, 3, 2, 4]), rest=np.array([3, 2, 4]), zero=[0], one=[1], two=[2], three=[3],
        axis=[2], i0=0, i1=1, i2=2,
    )  # fmt: skip


@pytest.mark.parametrize("shape", ["s", "c"])
@pytest.mark.parametrize("name", CASES)
def test_the_parts_get_axes_of_their_own_and_the_function_stays(parse, name, shape):
    body, apart = CASES[name]
    model = model_of(parse, body, shape)
    inputs = example_inputs(model)
    before = evaluate(model, inputs)
    prepared = prepare(model)
    assert compare(before, evaluate(prepared.model, inputs))[0] < 1e-6
    assert any(node.op_type == "Split" and node.inputs[0].name == "p" for node in prepared.model.graph) == apart


def test_a_scalar_has_nothing_to_cut(parse):
    model = parse(
        """g (float[2] x) => (float[1,1] y)
        <int64[2] s> {
            n = ReduceSum<keepdims=0>(x)
            y = Reshape(n, s) }""",
        s=[1, 1],
    )
    assert not any(split_projection(model, node) for node in model.graph)
