"""Plans stand on operators: copies keep them, files show the names of their schemes, artifacts know nothing of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest
from planning import node_named, plan_site
from stack_cases import BODIES, STACKS, body_model, stack_model

from qcompile.compiler import Options, plan
from qcompile.ir.graph import node_name, tidy
from qcompile.targets.plans import SCHEME, drop_plans, give_plan, plan_of, planned
from qcompile.targets.registry import backend, get_target, lowered_to

PRODUCTS = """g (float[n,32] x) => (float[n,32] y) <float[32,32] a, float[32,32] b> {
    h = MatMul(x, a)
    s = Sigmoid(h)
    y = MatMul(s, b) }"""


def products(parse) -> ir.Model:
    """Two planned sites without names around an operator without a plan."""
    model = parse(PRODUCTS)
    for name, weight in (("y", "b"), ("h", "a")):
        plan_site(model, name, model.graph.initializers[weight].const_value.numpy().T, "int4-g32")
    return model


def written(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def test_plans_come_in_the_order_of_the_graph(parse):
    model = products(parse)
    assert [node.name for node, _ in planned(model)] == ["", ""]
    assert [node_name(node) for node, _ in planned(model)] == ["h", "y"]
    assert all(plan_of(node) is found for node, found in planned(model))
    assert plan_of(node_named(model, "s")) is None


@pytest.mark.parametrize("name", BODIES)
def test_plans_in_bodies_come_where_they_are_met(name):
    model = plan(body_model(name), Options("reference", formats=["int4-g32"], transforms="none", method="rtn"))
    order = {node: place for place, node in enumerate(model.graph.all_nodes())}
    places = [order[node] for node, _ in planned(model)]
    assert places == sorted(places)
    nested = [node for node, _ in planned(model) if node.graph is not model.graph]
    assert len(nested) == (4 if name == "branches" else 2)
    assert len(places) == len(nested) + 2


@pytest.mark.parametrize("model", [*map(body_model, BODIES), stack_model("looked up")])
def test_a_copy_keeps_plans_and_shares_their_weights(model):
    model = plan(model, Options("reference", formats=["int4-g32"], transforms="none", method="rtn"))
    copy = model.clone()
    assert len(planned(model)) > 1
    for (node, found), (other, theirs) in zip(planned(model), planned(copy), strict=True):
        assert node is not other
        assert found is theirs
        assert node_name(node) == node_name(other)
        assert node.metadata_props[SCHEME] == other.metadata_props[SCHEME] == found.scheme.name
    drop_plans(copy)
    assert not planned(copy)
    assert planned(model)


def test_what_is_done_before_lowering_keeps_plans(parse):
    """Backends inline, lift, infer shapes and drop what nothing reads in a graph that is planned already."""
    model = products(parse)
    want = [plan for _, plan in planned(model)]
    for step in (common.InlinePass(), common.LiftConstantsToInitializersPass(), common.ShapeInferencePass()):
        step(model)
    tidy(model)
    assert [plan for _, plan in planned(model)] == want


def test_a_saved_graph_shows_schemes_and_holds_no_plans(parse, tmp_path):
    model = products(parse)
    ir.save(model, tmp_path / "planned.onnx")
    loaded = ir.load(tmp_path / "planned.onnx")
    assert [node.metadata_props.get(SCHEME) for node in loaded.graph] == ["int4-g32", None, "int4-g32"]
    assert not planned(loaded)
    drop_plans(loaded)
    plain = parse(PRODUCTS)
    assert written(loaded) == written(plain)


def test_a_later_plan_takes_the_place_of_an_earlier_one(parse):
    model = products(parse)
    node = node_named(model, "h")
    old = plan_of(node)
    new = plan_site(model, "h", np.eye(32), "nvfp4/nvfp4")
    assert plan_of(node) is new
    assert node.metadata_props[SCHEME] == "nvfp4/nvfp4"
    give_plan(node, old)
    assert [found for _, found in planned(model)][0] is old
    assert node.metadata_props[SCHEME] == "int4-g32"


ARTIFACTS = [("cpu-int4", "onnxruntime"), ("cpu-int8", "onnxruntime"), ("reference", "onnxruntime"),
             ("hopper-int4", "triton"), ("blackwell-fp4", "triton"), ("tvm-cpu", "tvm")]  # fmt: skip
MODELS = {**dict.fromkeys(BODIES, body_model), **dict.fromkeys(STACKS, stack_model)}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target, package", ARTIFACTS)
def test_artifacts_know_nothing_of_plans(target: str, package: str, name: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    found = get_target(target)
    if name in BODIES and not found.bodies:
        pytest.skip("the target runs no bodies")
    runtime = found.backends[-1]
    model = plan(MODELS[name](name), Options(target, transforms="none", method="rtn"))
    assert len(planned(model)) > 1
    quick = replace(found, options={**found.options, "ahead": False})
    files = backend(runtime).lower(model, quick, tmp_path).files
    assert files
    for file in files:
        assert SCHEME.encode() not in (tmp_path / file).read_bytes()


@pytest.mark.parametrize("target, package", ARTIFACTS)
def test_every_backend_knows_sites_without_a_name_by_their_results(parse, target: str, package: str, tmp_path: Path):
    pytest.importorskip(package)
    found = get_target(target)
    model = parse(PRODUCTS)
    for name, weight in (("h", "a"), ("y", "b")):
        plan_site(model, name, model.graph.initializers[weight].const_value.numpy().T, found.scheme(found.default))
    x = {"x": np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)}
    with lowered_to(get_target("reference"), model.clone()) as run:
        want = run(x)["y"]
    lowering = backend(found.backends[-1])
    said = lowering.lower(model, replace(found, options={**found.options, "ahead": False}), tmp_path)
    assert list(said.sites) == ["h", "y"]
    assert np.linalg.norm(lowering.rehearse(tmp_path)(x)["y"] - want) < 0.02 * np.linalg.norm(want)


def test_lowering_what_is_planned_nowhere_leaves_floats(parse):
    model, x = products(parse), {"x": np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)}
    plain = model.clone()
    drop_plans(plain)
    with lowered_to(get_target("reference"), plain) as run:
        exact = run(x)["y"]
    with lowered_to(get_target("reference"), model) as run:
        rounded = run(x)["y"]
    assert not np.array_equal(exact, rounded)
    assert np.linalg.norm(exact - rounded) < 0.2 * np.linalg.norm(exact)
