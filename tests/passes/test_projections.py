"""Projections that are shaped into heads and then cut: cut first, the parts have heads of their own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.api import rotate
from qcompile.compiler import prepare
from qcompile.passes.index import load_pass
from qcompile.passes.state import State
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.session import evaluate

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
    "lookups that keep the axis": (
        """q1 = Gather<axis=2>(r, zero)\n t = Transpose<perm=[2,0,1,3,4]>(r)\n k0 = GatherND(t, deep1)
        k1 = Transpose<perm=[1,2,0,3,4]>(k0)\n v0 = GatherND(t, deep2)\n v1 = Transpose<perm=[1,2,0,3,4]>(v0)
        q = Squeeze(q1, axis)\n k = Squeeze(k1, axis)\n v = Squeeze(v1, axis)""", True,
    ),
    "one part is not read": (LOOKUPS.replace("i2", "i1"), True),
    "parts overlap": (SLICES.replace("two, three, axis", "zero, three, axis").replace("v = Squeeze(v1, axis)",
                      "v = ReduceSum<keepdims=0>(v1, axis)"), False),
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
         int64[1] two, int64[1] three, int64[1] axis, int64 i0, int64 i1, int64 i2,
         int64[1,1] deep1, int64[1,1] deep2> {{
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
        axis=[2], i0=0, i1=1, i2=2, deep1=[[-2]], deep2=[[2]],
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


#: Another layout of the heads, a stated shape or what a tracing exporter leaves of it, and how many heads share a part.
HEADS_FIRST = {
    "[heads, 3, head]": (
        [2, 5, 2, 3, 4],
        """q = Gather<axis=3>(r, i0)
        k = Gather<axis=3>(r, i1)
        v = Gather<axis=3>(r, i2)""",
    ),
    "[groups, shared + 2, head]": (
        [2, 5, 1, 6, 4],
        """q1 = Slice(r, zero, mtwo, last)\n k1 = Gather<axis=-2>(r, mtwo)\n v1 = Gather<axis=3>(r, mone)
        q0 = Slice(q1, zero, two, last)\n q = Squeeze(q0, axis)
        kk = Concat<axis=3>(k1, k1)\n k = Squeeze(kk, axis)\n vv = Concat<axis=3>(v1, v1)\n v = Squeeze(vv, axis)""",
    ),
}  # fmt: skip


@pytest.mark.parametrize("open_shapes", [False, True])
@pytest.mark.parametrize("name", HEADS_FIRST)
def test_heads_may_come_first(parse, name, open_shapes):
    """V changes basis although Q passes a sigmoid: the three have axes of their own."""
    shape, body = HEADS_FIRST[name]
    model = parse(
        f"""g (float[2,5,6] x) => (float[2,5,3] y)
        <float[6,24] w, float[8,3] o, int64[3] rest, int64[1] zero, int64[1] two, int64[1] mtwo, int64[1] mone,
         int64[1] last, int64[1] axis, int64 i0, int64 i1, int64 i2> {{
            p = MatMul(x, w)
            d = Shape<start=0, end=2>(x)
            c = Concat<axis=0>(d, rest)
            r = Reshape(p, c)
            {body}
            a = Sigmoid(q)
            b = Sigmoid(k)
            e = ReduceSum<keepdims=1>(a, mone)
            f = ReduceSum<keepdims=1>(b, mone)
            h = Mul(e, v)
            z = Mul(f, h)
            n = Constant<value = int64[3] {{0, 0, 8}}>()
            m = Reshape(z, n)
            y = MatMul(m, o) }}""",
        rest=shape[2:], zero=[0], two=[2], mtwo=[-2], mone=[-1], last=[3], axis=[2], i0=0, i1=1, i2=2,
    )  # fmt: skip
    inputs = example_inputs(model)
    before = evaluate(model, inputs)
    if open_shapes:
        for value in (value for node in model.graph for value in node.outputs if value.name != "y"):
            value.shape = None if value.shape is None else ir.Shape([None] * len(value.shape))
    rotated = rotate(model)
    assert compare(before, evaluate(rotated.prepared.model, inputs))[0] < 1e-5
    assert [node.size for node in rotated.placement.offline] == [4]


def test_a_scalar_has_nothing_to_cut(parse):
    model = parse(
        """g (float[2] x) => (float[1,1] y)
        <int64[2] s> {
            n = ReduceSum<keepdims=0>(x)
            y = Reshape(n, s) }""",
        s=[1, 1],
    )
    assert not load_pass("split-projections")().apply(State(model))
