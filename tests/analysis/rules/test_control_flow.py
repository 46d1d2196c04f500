"""Bodies of If, Loop and Scan: spaces reach into them, through states, scanned values, and what they capture."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.analysis.analyze import analyze
from qcompile.api import rotate
from qcompile.compiler import prepare
from qcompile.errors import InputError
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.session import evaluate
from qcompile.targets.eligible import quantizable
from qcompile.targets.registry import get_target
from qcompile.transforms.freedom import Freedom

#: What stands between two sites, ``y = w2 · body(w1 · x)``: how h [2,3,8] becomes g, and what it leaves of the 8.
CASES = {
    "branches that add": (
        """p = ReduceSum<keepdims=0>(x)
        k = Cast<to=9>(p)
        g = If (k) <then_branch = a () => (t) { t = Add(h, c) }, else_branch = b () => (e) { e = Neg(h) }>""",
        Freedom.GENERAL,
    ),
    "a branch with a nonlinear operator": (
        """p = ReduceSum<keepdims=0>(x)
        k = Cast<to=9>(p)
        g = If (k) <then_branch = a () => (t) { t = Sigmoid(h) }, else_branch = b () => (e) { e = Neg(h) }>""",
        Freedom.PERMUTATION,
    ),
    "a branch with a site": (
        """p = ReduceSum<keepdims=0>(x)
        k = Cast<to=9>(p)
        g = If (k) <then_branch = a () => (t) { t = MatMul(h, m) }, else_branch = b () => (e) { e = MatMul(h, n) }>""",
        Freedom.GENERAL,
    ),
    "a branch with an unknown operator": (
        """p = ReduceSum<keepdims=0>(x)
        k = Cast<to=9>(p)
        g = If (k) <then_branch = a () => (t) { r = ai.unknown.Mystery(h)
            t = Identity(h) }, else_branch = b () => (e) { e = Neg(h) }>""",
        Freedom.NONE,
    ),
    "branches of two ranks": (
        """p = ReduceSum<keepdims=0>(x)
        k = Cast<to=9>(p)
        q = If (k) <then_branch = a () => (t) { t = Reshape(h, flat) }, else_branch = b () => (e) { e = Neg(h) }>
        g = Reshape(q, full)""",
        Freedom.NONE,
    ),
    "a sum over rows as a scan": (
        """z = Gather<axis=1>(h, first)
        last, g = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1],
            body = step (s, row) => (t, u) { t = Add(s, row)
            u = Identity(t) }>(z, h)""",
        Freedom.GENERAL,
    ),
    "a recurrence through relu": (
        """z = Gather<axis=1>(h, first)
        last, g = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1],
            body = step (s, row) => (t, u) { r = Relu(s)
            t = Add(r, row)
            u = Identity(t) }>(z, h)""",
        Freedom.POSITIVE_MONOMIAL,
    ),
    "a recurrent site": (
        """z = Gather<axis=1>(h, first)
        last, g = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1],
            body = step (s, row) => (t, u) { r = MatMul(s, m)
            t = Add(r, row)
            u = Identity(t) }>(z, h)""",
        Freedom.GENERAL,
    ),
    "a state from a constant": (
        """last, g = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1],
            body = step (s, row) => (t, u) { t = Add(s, row)
            u = Identity(t) }>(start, h)""",
        Freedom.GENERAL,
    ),
    "a state that a site makes anew": (
        """last, g = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1],
            body = step (s, row) => (t, u) { t = MatMul(row, m)
            u = Identity(s) }>(start, h)""",
        Freedom.GENERAL,
    ),
    "a state that an unknown operator makes anew": (
        """z = Gather<axis=1>(h, first)
        last, k = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1],
            body = step (s, row) => (t, u) { t = ai.unknown.Mystery(row)
            u = Identity(s) }>(z, x)
        g = Identity(k)""",
        Freedom.NONE,
    ),
    "what a body captures": (
        """z = Gather<axis=1>(h, first)
        last, k = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1],
            body = step (s, row) => (t, u) { t = Identity(s)
            w = Gather<axis=1>(h, first)
            v = Tanh(w)
            u = Add(v, row) }>(z, h)
        g = Identity(k)""",
        Freedom.SIGNED_PERMUTATION,
    ),
    "a loop that adds": (
        """g = Loop (times, yes, h) <body = step (i, c0, s) => (c1, t) { c1 = Identity(c0)
            t = Add(s, c) }>""",
        Freedom.GENERAL,
    ),
    "a loop that grows its state": (
        """q = Loop (times, yes, h) <body = step (i, c0, s) => (c1, t) { c1 = Identity(c0)
            t = Concat<axis=1>(s, h) }>
        g = Slice(q, zero, three, one)""",
        Freedom.NONE,
    ),
    "a loop with a collected output": (
        """f, k = Loop (times, yes, h) <body = step (i, c0, s) => (c1, t, u) { c1 = Identity(c0)
            t = Add(s, c)
            u = Identity(s) }>
        n0 = ReduceSum<keepdims=0>(k, zero)
        g = Add(f, n0)""",
        Freedom.GENERAL,
    ),
}
CONSTANTS = {"first": 0, "times": 3, "yes": True, "zero": [0], "one": [1], "three": [3], "flat": [-1],
             "full": [2, 3, 8]}  # fmt: skip


@pytest.fixture
def graph(parse):
    def make(name: str):
        return parse(
            f"""g (float[2,3,5] x) => (float[2,3,4] y)
            <float[5,8] w1, float[8,4] w2, float[8] c, float[8,8] m, float[8,8] n, float[2,8] start, int64 first,
             int64 times, bool yes, int64[1] zero, int64[1] one, int64[1] three, int64[1] flat, int64[3] full> {{
                h = MatMul(x, w1)
                {CASES[name][0]}
                y = MatMul(g, w2) }}""",
            **CONSTANTS,
        )

    return make


@pytest.mark.parametrize("name", CASES)
def test_freedom_is_what_the_mathematics_says(graph, name):
    analysis = analyze(graph(name))
    value = next(v for v in analysis.refs_of if v.name == "h")
    assert analysis.free(analysis.refs_of[value][-1]).label == CASES[name][1].label


@pytest.mark.parametrize("name", [name for name in CASES if "unknown" not in name])
def test_members_of_the_freedom_keep_the_output(graph, check_sound, name):
    for seed in range(3):
        check_sound(graph(name), seed)


def test_an_unknown_operator_freezes_what_its_body_captures():
    """The input of the body is not what stands in its way, so only the captured value can say so."""
    body = ir.Graph([], [], nodes=[], name="body")
    x, w1, w2 = (
        ir.val(name, ir.DataType.FLOAT, shape) for name, shape in (("x", [2, 5]), ("w1", [5, 8]), ("w2", [8, 4]))
    )
    for weight in (w1, w2):
        weight.const_value = ir.tensor(np.zeros(weight.shape.numpy(), np.float32))
    h = ir.node("MatMul", [x, w1])
    inner = ir.node("Exp", h.outputs)
    body.append(inner)
    body.outputs.extend(inner.outputs)
    mystery = ir.node("Mystery", [x], {"body": body}, domain="ai.unknown")
    y = ir.node("MatMul", [h.outputs[0], w2])
    graph = ir.Graph([x], y.outputs, nodes=[h, mystery, y], initializers=[w1, w2], opset_imports={"": 21})
    h.outputs[0].shape, y.outputs[0].shape = ir.Shape([2, 8]), ir.Shape([2, 4])
    analysis = analyze(ir.Model(graph, ir_version=10))
    assert analysis.free(analysis.refs(h.outputs[0])[-1]) == Freedom.NONE


def test_the_oldest_form_of_scan_is_not_followed(parse):
    """It has a batch of its own, and lengths of sequences before everything else."""
    model = parse(
        """g (float[2,3,5] x) => (float[2,3,4] y) <float[5,8] w1, float[8,4] w2, float[2,8] z> {
            h = MatMul(x, w1)
            last, g = Scan<num_scan_inputs=1, body = step (float[8] s, float[8] row) => (float[8] t, float[8] u) {
                t = Add(s, row)
                u = Identity(t) }>(, z, h)
            y = MatMul(g, w2) }""",
        opset=8,
    )
    analysis = analyze(model)
    (h,) = [value for value in analysis.refs_of if value.name == "h"]
    node = analysis.axes.find(analysis.refs_of[h][-1]).node
    assert node.freedom == Freedom.NONE
    assert node.limits[0].reason.endswith("has the form of opset 8")
    with pytest.raises(InputError, match="as operators of version 8 had it"):
        rotate(model)


def test_a_site_in_a_body_folds_and_is_quantized_where_the_target_can(graph):
    prepared = prepare(graph("a recurrent site"))
    inner = [site for site in prepared.analysis.sites if site.nested]
    assert [site.shape for site in inner] == [(8, 8)]
    assert inner[0] in quantizable(prepared.analysis, get_target("cpu-int4"))[0]
    assert inner[0] not in quantizable(prepared.analysis, get_target("tvm-cpu"))[0]


def test_a_rotated_recurrence_runs_through_the_whole_pipeline(graph):
    source = graph("a recurrent site")
    inputs = example_inputs(source)
    rotated = rotate(source)
    assert 8 in [node.size for node in rotated.placement.offline]
    assert compare(evaluate(source, inputs), evaluate(rotated.prepared.model, inputs))[0] < 1e-5


def test_no_boundary_is_put_into_a_body(parse):
    """Tanh in the body reads a space with many readers, and what it makes is read by a site outside."""
    model = parse(
        """g (float[2,3,5] x) => (float[2,3,4] y)
        <float[5,8] w1, float[8,4] a, float[8,4] b, float[8,4] c, float[8,4] d, float[2,8] start> {
            h = MatMul(x, w1)
            h1 = Identity(h)
            last, g = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1],
                body = step (s, row) => (t, u) { t = Tanh(row)
                u = Identity(t) }>(start, h)
            h2 = Neg(h)
            h3 = Neg(h2)
            ya = MatMul(h, a)
            yb = MatMul(h2, b)
            yc = MatMul(h3, c)
            yd = MatMul(g, d)
            y0 = Add(ya, yb)
            y1 = Add(y0, yc)
            y = Add(y1, yd) }"""
    )
    inputs = example_inputs(model)
    rotated = rotate(model)
    assert not [n for body in rotated.prepared.model.graph.subgraphs() for n in body if n.domain == "qcompile"]
    assert compare(evaluate(model, inputs), evaluate(rotated.prepared.model, inputs))[0] < 1e-5
