"""Stacks rewritten as their matrices compute the same, with float weights and with quantized ones."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from stack_cases import STACKS, stack_model

from qcompile.analysis.analyze import analyze
from qcompile.analysis.forms import Stack, read_site
from qcompile.analysis.matrices import weight_matrix
from qcompile.analysis.stacks import experts_of
from qcompile.compiler import Options, plan
from qcompile.errors import TargetError
from qcompile.formats import quantize
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.session import evaluate
from qcompile.targets.plans import Plan, give_plan, planned
from qcompile.targets.scheme import Scheme
from qcompile.targets.split_stacks import unroll

SCHEME = Options(target="reference", formats=["int4-g32"], transforms="none", method="rtn")


def stacks_of(model: ir.Model) -> list[Stack]:
    products = [node for node in model.graph.all_nodes() if node.op_type in ("MatMul", "Einsum")]
    return [site for site in map(read_site, products) if isinstance(site, Stack)]


@pytest.mark.parametrize("routed", [True, False])
@pytest.mark.parametrize("name", STACKS)
def test_the_graph_computes_the_same(name, routed):
    model = plan(stack_model(name), SCHEME)
    inputs, changed = example_inputs(model), model.clone()
    parts = unroll(changed, routed=routed).parts
    assert not stacks_of(changed)
    assert compare(evaluate(model, inputs), evaluate(changed, inputs))[0] < 1e-6
    sites = dict(planned(changed))
    assert {node.name for node in sites} >= {part for found in parts.values() for part in found}
    for node, item in sites.items():  # each plan holds the matrix that its operator reads
        exact = node.inputs[1].const_value.numpy().T
        assert np.abs(item.weight.dequantize().numpy() - exact).max() < 0.4 * np.abs(exact).max()


@pytest.mark.parametrize("name", STACKS)
def test_the_oracle_computes_what_the_operator_does(name):
    model = stack_model(name)
    (site,) = stacks_of(model)
    form, inputs = experts_of(site), example_inputs(model)
    taps = [value for value in (site.x, form.indices, site.node.outputs[0]) if value is not None]
    missing = [value for value in taps if value not in (*model.graph.inputs, *model.graph.initializers.values())]
    model.graph.outputs.extend(missing)
    values = inputs | evaluate(model, inputs) | {n: v.const_value.numpy() for n, v in model.graph.initializers.items()}
    chosen = None if form.indices is None else values[form.indices.name]
    have = form.evaluate(values[site.x.name], lambda expert: form.matrix(expert).T, chosen)
    assert compare({"y": values[site.node.outputs[0].name]}, {"y": have})[0] < 1e-6


def _alone(site: Stack, values: dict) -> np.ndarray:
    """The operator by itself, with the lookup in front of it."""
    given = [value for value in values if value is not None and value.const_value is None]
    graph = ir.convenience.extract(site.weight.graph, given, [site.node.outputs[0]])
    result = evaluate(ir.Model(graph, ir_version=10), {value.name: values[value] for value in given})
    return result[site.node.outputs[0].name]


@pytest.mark.parametrize("name", STACKS)
def test_rows_reach_the_experts_that_own_them(name):
    (site,) = stacks_of(stack_model(name))
    form, rng = experts_of(site), np.random.default_rng(0)
    if form.route is None:
        return
    x = rng.standard_normal([int(dim) for dim in site.x.shape])
    indices = None
    if form.indices is not None:
        known = form.indices.const_value
        indices = rng.integers(-4, 4, form.indices.shape.numpy()) if known is None else known.numpy()
    owners = form.route.owners(x, indices)
    weight, axes = site.weight, list(range(len(site.weight.shape)))
    for expert, places in enumerate(form.places):
        alone = np.zeros((form.places.size, 32), np.float32)
        alone[places] = 1
        kept = [int(weight.shape[axis]) for axis in axes if axis != site.axis]
        weight.const_value = ir.tensor(np.ascontiguousarray(np.moveaxis(alone.reshape(*kept, 32), -1, site.axis)))
        used = np.zeros(len(owners), bool)
        for row in range(len(owners)):  # which rows of the operator's input have any effect
            one = np.zeros((len(owners), 32), np.float32)
            one[row] = 1
            values = {site.x: one.reshape(x.shape), form.indices: indices}
            used[row] = bool(_alone(site, values).any())
        assert np.array_equal(used, (owners == expert).any(1))


@pytest.mark.parametrize("routed", [True, False])
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_any_number_of_rows_and_indices_from_the_end(parse, routed, tokens):
    model = plan(parse(
        """g (float[t,32] x, int64[t,2] i) => (float[t,2,48] y) <float[4,32,48] k, float[4,48,48] l> {
            w = Gather<axis=0>(k, i)
            g = Einsum<equation="td,tkdf->tkf">(x, w)
            v = Gather<axis=0>(l, i)
            y = Einsum<equation="tkf,tkfe->tke">(g, v) }"""
    ), SCHEME)  # fmt: skip
    changed, rng = model.clone(), np.random.default_rng(0)
    unrolled = unroll(changed, routed=routed)
    assert sorted(map(len, unrolled.parts.values())) == ([4, 4] if routed else [1, 1])
    x, i = rng.standard_normal((tokens, 32)).astype(np.float32), rng.integers(-4, 4, (tokens, 2))
    have = evaluate(changed, {"x": x, "i": i})["y"]
    assert have.shape == (tokens, 2, 48)
    if tokens:  # onnxruntime's Einsum of nothing ends the process
        np.testing.assert_allclose(have, evaluate(model, {"x": x, "i": i})["y"], rtol=1e-4, atol=1e-4)


def test_siblings_share_the_routes(parse):
    model = plan(parse(
        """g (float[t,32] x, int64[t,2] i) => (float[t,2,48] y) <float[4,32,48] k, float[4,32,48] l> {
            w = Gather<axis=0>(k, i)
            g = Einsum<equation="td,tkdf->tkf">(x, w)
            v = Gather<axis=0>(l, i)
            u = Einsum<equation="td,tkdf->tkf">(x, v)
            y = Mul(g, u) }"""
    ), SCHEME)  # fmt: skip
    unroll(model, routed=True)
    assert sum(node.op_type == "NonZero" for node in model.graph) == 1
    assert not any(node.op_type in ("MatMul", "Split") for node in model.graph)  # one value for each expert: in bodies


@pytest.mark.parametrize("routed", [True, False])
def test_a_stack_without_a_name_goes_by_its_result(routed):
    model = stack_model("looked up")
    (site,) = [site for site in analyze(model).sites if len(site.shape) == 3]
    scheme = Scheme.parse("int4-g32")
    give_plan(site.node, Plan(scheme, quantize(weight_matrix(site), scheme.weight)))
    assert site.node.name == ""
    changed, inputs = model.clone(), example_inputs(model)
    (stack, parts), *others = unroll(changed, routed=routed).parts.items()
    assert (stack, others) == ("g", [])
    assert parts == [node.name for node, _ in planned(changed)]
    assert all(part.startswith("g/MatMul_") for part in parts)
    assert compare(evaluate(model, inputs), evaluate(changed, inputs))[0] < 1e-6


REFUSED = {
    "it adds results up along an axis": "e = Unsqueeze(h, one)\n g = Einsum<equation='betd,edf->bef'>(e, k)",
    "one operand has a letter twice": "g = Einsum<equation='btd,eed->bte'>(h, s)",
    "whether its input has 4 experts is not known": "g = MatMul(c, k)",
    "another operator reads the matrices that it looks up": (
        "w = Gather<axis=0>(k, ids)\n r = Relu(w)\n g = Einsum<equation='btd,btdf->btf'>(h, w)"
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_product_for_each_matrix_is_refused_with_the_reason(parse, reason):
    text = REFUSED[reason].replace("'", '"')
    model = parse(
        f"""g (float[2,3,32] h, float[e,3,32] c, int64[2,3] ids) => (y)
        <float[4,32,48] k, float[4,4,32] s, int64[1] one> {{ {text}
            y = Identity(g) }}""", one=[1],
    )  # fmt: skip
    (site,) = stacks_of(model)
    with pytest.raises(TargetError, match=reason):
        experts_of(site)
