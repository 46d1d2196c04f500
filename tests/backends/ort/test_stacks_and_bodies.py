"""Sites whose weight is a stack of matrices, and sites in the bodies of If, Loop and Scan."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from families import load, stored

from qcompile.backends.ort import lowering, runner
from qcompile.capture import example_inputs
from qcompile.compiler import Options, export, plan, rotate
from qcompile.evaluate import compare, evaluate, to_double
from qcompile.preparation import prepare, quantizable
from qcompile.site_forms import Stack, read_site
from qcompile.targets import get_target

BRANCHES = """p = ReduceSum<keepdims=0>(x)
    k = Cast<to=9>(p)
    g = If (k) <then_branch = a () => (t) { u = MatMul(h, m)
        r = Relu(u)
        t = MatMul(r, n) }, else_branch = b () => (t) { u = MatMul(h, m)
        r = Tanh(u)
        t = MatMul(r, n) }>"""

STEPS = """z = Gather<axis=1>(h, first)
    last, g = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1],
        body = step (s, row) => (t, o) { u = MatMul(s, m)
        r = Relu(u)
        v = MatMul(r, n)
        t = Add(v, row)
        o = Identity(t) }>(z, h)"""

ROUNDS = """g = Loop (times, yes, h) <body = step (int64 i, bool c, float[2,3,32] s) => (d, t) { d = Identity(c)
        u = MatMul(s, m)
        r = Relu(u)
        v = MatMul(r, n)
        t = Add(v, s) }>"""

BODIES = {"branches": BRANCHES, "steps": STEPS, "rounds": ROUNDS}

#: Products of h [2, 3, 32] with a stack or with what is looked up in it: the shapes of the stack and of the result.
STACKS = {
    "batched": ("e = Unsqueeze(h, one)\n g = MatMul(e, k)", "4,32,48", "2,4,3,48"),
    "summed over letters": ('g = Einsum<equation="btd,edf->btef">(h, k)', "4,32,48", "2,3,4,48"),
    "features first": ('g = Einsum<equation="btd,fde->btef">(h, k)', "48,32,4", "2,3,4,48"),
    "a matrix alone": ('g = Einsum<equation="btd,fd->btf">(h, k)', "48,32", "2,3,48"),
    "looked up": ('w = Gather<axis=0>(k, ids)\n g = Einsum<equation="btd,btdf->btf">(h, w)', "4,32,48", "2,3,48"),
    "looked up, multiplied": (
        "w = Gather<axis=0>(k, ids)\n r = Unsqueeze(h, two)\n g = MatMul(r, w)", "4,32,48", "2,3,1,48",
    ),
}  # fmt: skip


@pytest.fixture
def body(parse):
    def make(name: str) -> ir.Model:
        return parse(
            f"""g (float[2,3,32] x) => (float[2,3,16] y)
            <float[32,32] w1, float[32,64] m, float[64,32] n, float[32,16] w2, int64 first, int64 times, bool yes> {{
                h = MatMul(x, w1)
                {BODIES[name]}
                y = MatMul(g, w2) }}""",
            first=0, times=2, yes=True,
        )  # fmt: skip

    return make


@pytest.fixture
def stack(parse):
    def make(name: str) -> ir.Model:
        text, weight, result = STACKS[name]
        return parse(
            f"""g (float[2,3,16] x, int64[2,3] ids) => (float[{result}] y)
            <float[16,32] w1, float[{weight}] k, int64[1] one, int64[1] two> {{
                h = MatMul(x, w1)
                {text}
                u = Cast<to=1>(ids)
                v = ReduceSum<keepdims=0>(u)
                y = Add(g, v) }}""",
            one=[1], two=[2],
        )  # fmt: skip

    return make


def check(model: ir.Model, target: str, scheme: str, folder) -> None:
    """The lowered graph is the rotated one with every planned weight read back from its format."""
    graph, plans = plan(model, Options(target=target, formats=[scheme]))
    inputs = example_inputs(graph)
    exact, weights = graph.clone(), {site.name: site for site in prepare(model).analysis.sites}
    for item in plans:
        site = weights[item.site]
        value = exact.graph.initializers[site.weight.name]
        axis = site.axis_out if site.input is None else site.axis_in
        shape = [dim for i, dim in enumerate(site.shape) if i != axis]
        array = np.moveaxis(item.weight.dequantize().numpy().reshape(*shape, site.shape[axis]), -1, axis)
        value.const_value = ir.tensor(np.ascontiguousarray(array))
    lowering.lower(graph, plans, get_target(target), folder)
    run = runner.load(folder)
    assert compare(evaluate(exact, inputs), run(inputs))[0] < 1e-6
    assert not {site.weight.name for site in weights.values()} & set(graph.graph.initializers)


@pytest.mark.parametrize("scheme", ["int4-g32", "nvfp4", "int8-channel"])
@pytest.mark.parametrize("name", BODIES)
def test_sites_in_bodies_are_quantized(body, tmp_path, name, scheme):
    check(body(name), "reference", scheme, tmp_path)


@pytest.mark.parametrize("scheme", ["int4-g32", "nvfp4", "int8-channel"])
@pytest.mark.parametrize("name", STACKS)
def test_stacks_are_quantized_matrix_by_matrix(stack, tmp_path, name, scheme):
    check(stack(name), "reference", scheme, tmp_path)


@pytest.mark.parametrize("name", STACKS)
def test_what_a_stack_contracts_is_read_from_the_operator(stack, name):
    model = prepare(stack(name)).model
    (found,) = [site for site in map(read_site, [n for n in model.graph if n.op_type in ("MatMul", "Einsum")])
                if isinstance(site, Stack)]  # fmt: skip
    assert found.weight.shape[found.axis] == 32


def test_features_that_are_not_last_keep_their_stack(parse):
    prepared = prepare(parse(
        """g (float[2,32,3] x) => (float[4,2,48,3] y) <float[4,1,48,32] k> { y = MatMul(k, x) }"""
    ))  # fmt: skip
    assert not quantizable(prepared)
    assert [entry.reason for entry in prepared.state.declined] == [
        "the features that it reads are not along the last axis"
    ]


@pytest.mark.parametrize("name", ["experts batched", "experts gathered"])
def test_activations_in_front_of_a_stack_are_quantized_row_by_row(tmp_path, name):
    artifact = export(load(stored(name)), Options(target="reference", formats=["mxfp4/mxfp4"]), tmp_path / "a")
    stacks = [site for site in artifact.manifest["sites"] if len(site["weight_shape"]) == 3]
    assert [site["format"] for site in stacks] == ["mxfp4"] * 6
    assert artifact.manifest["implementation"]["rel_l2"] < 1e-5
    assert 0 < artifact.manifest["quantization"]["rel_l2"] < 1


@pytest.mark.parametrize("target", ["cpu-int4", "cpu-int8"])
@pytest.mark.parametrize("name", BODIES)
def test_the_kernels_of_onnxruntime_stand_in_bodies_as_well(body, tmp_path, name, target):
    artifact = export(body(name), Options(target=target), tmp_path / "a")
    assert all(site["format"] != "float" for site in artifact.manifest["sites"])
    assert artifact.manifest["quantization"]["rel_l2"] < 0.5
    graph = ir.load(tmp_path / "a" / "model.onnx").graph
    assert not any(node.op_type in ("MatMul", "Gemm") for node in graph.all_nodes())


def test_a_target_says_what_it_cannot_compute(body):
    prepared = prepare(body("branches"))
    chosen = quantizable(prepared, get_target("hopper-int4"))
    assert not any(site.nested for site in chosen)
    (reason,) = {entry.reason for entry in prepared.state.declined}
    assert reason == "it stands in the body of another operator, where target 'hopper-int4' computes with float weights"


def test_online_transforms_stand_in_bodies(body):
    for name in BODIES:
        model = to_double(body(name))
        inputs = example_inputs(model)
        rotated = rotate(model)
        inner = [n for g in rotated.prepared.model.graph.subgraphs() for n in g if n.domain == "qcompile"]
        assert inner
        assert 32 in [node.size for node in rotated.placement.offline]
        assert compare(evaluate(model, inputs), evaluate(rotated.prepared.model, inputs))[0] < 1e-10
