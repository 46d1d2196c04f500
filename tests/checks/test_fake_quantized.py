"""The engine with fake quantization computes what lowered graphs do; where it cannot, or they do not, that is said."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from planning import node_named, plan_site
from stack_cases import BODIES, STACKS, body_model, stack_model

import qcompile as qc
from qcompile.checks.equivalence import Observed
from qcompile.checks.fake_quantized import FakeQuantized, departure, measured_on, planned_run, rounded_for
from qcompile.checks.losses import FloatModel, each
from qcompile.cli.evidence_rows import engine_rows
from qcompile.compiler import Options, lowered_to, plan, prepare
from qcompile.errors import InputError
from qcompile.passes.state import State
from qcompile.run.compare import compare
from qcompile.run.data import Data, example_inputs
from qcompile.run.session import Run, Session, evaluate
from qcompile.targets.plans import plan_of
from qcompile.targets.registry import backend, get_target

ROUNDING = 2e-6  # of sums of a few dozen terms in float32

#: The ways in which a matrix may be multiplied, each with the shape of its weight.
FORMS = {
    "MatMul": ("g = MatMul(h, w)", (32, 24)),
    "MatMul from the left": ("t = Transpose<perm=[0,2,1]>(h)\n g = MatMul(w, t)", (24, 32)),
    "Gemm": ("f = Reshape(h, s)\n g = Gemm<alpha=0.5, beta=2.0>(f, w, b)", (32, 24)),
    "Gemm, transposed": ("f = Reshape(h, s)\n t = Transpose<perm=[1,0]>(f)\n g = Gemm<transA=1>(t, w)", (32, 24)),
    "Conv": ("t = Transpose<perm=[0,2,1]>(h)\n g = Conv(t, w)", (24, 32, 1)),
}


def arrays(found: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.cpu().numpy() for name, value in found.items()}


def same(model: ir.Model, target: str = "reference", tolerance: float = ROUNDING) -> None:
    """The engine computes what the planned graph does when it is lowered."""
    inputs = example_inputs(model)
    have = arrays(next(FakeQuantized(rounded_for(model, get_target(target)), "cpu")([inputs])))
    with lowered_to(get_target(target), model.clone()) as run:
        want = dict(zip(have, run(inputs).values(), strict=True))
    assert compare(want, have)[0] < tolerance


def two_sites(parse: Any) -> ir.Model:
    """A table that is looked up, a site, and an output that reads that site's weight besides."""
    return parse(
        """g (int64[2,5] ids) => (float[2,5,32] y, float[2,5,32] z) <float[20,32] t, float[32,32] w> {
            h = Gather(t, ids) [one] g = MatMul(h, w) y = Tanh(g) [two] z = MatMul(h, w) }"""
    )


@pytest.mark.parametrize("scheme", ["int4-g16", "nvfp4/nvfp4", "int8-channel/int8-channel"])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_product(parse: Any, name: str, scheme: str) -> None:
    text, shape = FORMS[name]
    model = parse(
        f"""g (float[2,5,32] x) => (float y) <float[{",".join(map(str, shape))}] w, float[24] b, int64[2] s>
        {{ h = Identity(x)\n {text}\n y = Identity(g) }}""",
        s=[-1, 32],
    )
    node, weight = node_named(model, "g"), model.graph.initializers["w"].const_value.numpy()
    plan_site(model, "g", weight.T if shape[0] == 32 else weight.reshape(24, 32), scheme)
    assert node.outputs[0].name == "g"
    same(model)


@pytest.mark.parametrize("name", [*STACKS, *BODIES])
def test_stacks_and_bodies(name: str) -> None:
    model = stack_model(name) if name in STACKS else body_model(name)
    same(plan(model, Options(target="reference", formats=["nvfp4/nvfp4"], transforms="none")), tolerance=1e-5)


def test_a_weight_is_rounded_for_its_site_alone(parse: Any) -> None:
    """``two`` keeps the weight that ``one`` is planned with, and the table is looked up as it is rounded."""
    model = two_sites(parse)
    weight, table = (model.graph.initializers[name].const_value.numpy() for name in "wt")
    plan_site(model, "one", weight.T, "int4-g32")
    model.graph[0].name = "table"
    plan_site(model, "table", table, "int8-g32")
    rounded = rounded_for(model, get_target("reference"))
    assert {name: place.sites for name, place in rounded.places.items()} == {"h/read": ("one",)}
    assert set(rounded.model.graph.initializers) == {"w", "w/rounded", "t/rounded"}
    assert plan_of(node_named(model, "one")) is not None  # the graph stays as it is
    same(model)


def test_sites_that_round_one_value_alike_share_its_place(parse: Any) -> None:
    model = two_sites(parse)
    weight = model.graph.initializers["w"].const_value.numpy()
    for scheme, sites in (("int8-g32/int8-g32", [("one", "two")]), ("int8-g32/nvfp4", [("one",), ("two",)])):
        plan_site(model, "one", weight.T, "int8-g32/int8-g32")
        plan_site(model, "two", weight.T, scheme)
        rounded = rounded_for(model, get_target("reference"))
        assert [place.sites for place in rounded.places.values()] == sites
        same(model)


@pytest.mark.parametrize("name", ["batched", "several axes of results"])
def test_what_a_kernel_rounds_by_itself_is_rounded(tmp_path: Path, name: str) -> None:
    """A stack, too, that is lowered as products of onnxruntime's own."""
    target = get_target("cpu-int4")
    model = plan(stack_model(name), Options(target="cpu-int4", transforms="none"))
    places = rounded_for(model, target).places.values()
    found = {site: place.activation for place in places for site in place.sites}
    inputs = example_inputs(model)
    have = arrays(next(FakeQuantized(rounded_for(model, target), "cpu")([inputs])))
    lowered = backend("ort").lower(model, target, tmp_path)
    want = dict(zip(have, backend("ort").load(tmp_path)(inputs).values(), strict=True))
    assert compare(want, have)[0] < 1e-4  # the kernel divides otherwise: a few codes differ
    assert {site: None if fmt is None else fmt.name for site, fmt in found.items()} == {
        site: notes.get("rounds_input_to") for site, notes in lowered.sites.items()
    }
    assert any(found.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("scheme", ["int4-g16", "nvfp4/nvfp4", "int8-channel/int8-channel"])
def test_on_a_gpu(parse: Any, scheme: str) -> None:
    model = two_sites(parse)
    against, data, state = yardstick(model.clone(), device="cuda")
    plan_site(model, "one", model.graph.initializers["w"].const_value.numpy().T, scheme)
    rounded = rounded_for(model, get_target("reference"))
    want, have = (against.measure(FakeQuantized(rounded, device), data) for device in ("cpu", "cuda"))
    assert have.rel_l2 == pytest.approx(want.rel_l2, rel=1e-3)
    assert have.divergence == pytest.approx(want.divergence, rel=1e-3)
    found = departure(FakeQuantized(rounded, "cuda"), lambda batch: next(FakeQuantized(rounded, "cpu")([batch])),
                      against, data, want.rel_l2)  # fmt: skip
    assert found.rel_l2 < ROUNDING
    assert not state.declined


# -- what cannot be, and what should not -------------------------------------------------------------------------------


#: A scan that the engine has no row for, as it runs backwards, with a site in its body.
BACKWARDS = """g (float[4,32] x) => (float[4,32] y) <float[32,32] w, float[1,32] s, int64[1] zero> {
    last, y = Scan<num_scan_inputs=1, scan_input_directions=[1], body = step (t, row) => (n, o) {
        e = Unsqueeze(row, zero)
        u = Add(t, e)
        n = MatMul(u, w)
        o = Squeeze(n, zero) }>(s, x)
    }"""


def yardstick(model: ir.Model, device: str = "cpu", **observed: np.ndarray) -> tuple[FloatModel, Data, State]:
    """A graph as the float model, which keeps what is declined; it was observed with those outputs, or its own."""
    prepared = prepare(model)
    data = Data((example_inputs(model),), random=True)
    outputs = {name: observed.get(name, value) for name, value in evaluate(model, data.batches[0]).items()}
    seen = Observed(data, {id(data.batches[0]): outputs})
    return FloatModel.of(prepared.source, prepared.analysis, seen, prepared.state.decline, device), data, prepared.state


@pytest.mark.parametrize("scheme", ["int8-g32", "int4-g32/int4-g32"])
def test_what_is_lowered_must_be_what_was_measured(parse: Any, scheme: str) -> None:
    """A hundredth too much is no matter of rounding where no input is rounded, nor is half too much where they are."""
    model = two_sites(parse)
    against, data, state = yardstick(model.clone())
    weight = model.graph.initializers["w"].const_value.numpy()
    plan_site(model, "one", weight.T, scheme)
    plan_site(model, "two", weight.T, scheme)
    engine = FakeQuantized(rounded_for(model, get_target("reference")), "cpu")
    error = against.measure(engine, data).rel_l2
    with lowered_to(get_target("reference"), model) as run:
        found = departure(engine, run, against, data, error)
        assert found.rel_l2 < ROUNDING
        assert found.explained < 1e-5 or scheme != "int8-g32"
        assert found.explained > 0 or scheme != "int8-g32"  # of few rows none may be on a tie
        assert not state.declined
        factor = 1.01 if scheme == "int8-g32" else 1.5
        departure(engine, lambda batch: {k: v * factor for k, v in run(batch).items()}, against, data, error)
    (declined,) = state.declined
    assert declined.what == "computing what the engine does"
    assert re.search(r"a relative L2 of (0\.01|0\.5), more than the .* that rounding explains", declined.reason)


def test_an_engine_that_fails_is_said_and_done_without(parse: Any) -> None:
    against, data, state = yardstick(two_sites(parse))

    def fails() -> FakeQuantized:
        raise ValueError("torch says no")

    @contextmanager
    def lowered() -> Iterator[Run]:
        yield lambda _: against.observed.outputs[id(data.batches[0])]

    errors, engine = measured_on(fails, lowered, against, lambda own, run: own.errors(run, data))
    assert engine is None
    assert errors[0] < ROUNDING
    (declined,) = state.declined
    assert (declined.what, declined.reason.partition(";")[0]) == (
        "measuring on the engine",
        "ValueError: torch says no",
    )


def test_a_source_that_the_engine_computes_otherwise_runs_in_onnxruntime(parse: Any) -> None:
    model = two_sites(parse)
    against, data, state = yardstick(model, z=np.ones((2, 5, 32), np.float32))
    assert against.errors(each(Session(model).run), data) == [0.0]
    (declined,) = state.declined
    assert declined.what == "running the float model on the engine"
    assert "its outputs differ from onnxruntime's" in declined.reason


def test_inputs_that_are_rounded_where_no_hook_is(parse: Any, tmp_path: Path) -> None:
    """The artifact is measured itself; manifest and screen say so."""
    artifact = qc.export(parse(BACKWARDS, zero=[0]), "reference", tmp_path / "a", formats=["int8-channel/int8-channel"])
    assert artifact.manifest["engine"] is None
    assert 0 < artifact.manifest["quantization"]["rel_l2"] < 0.1
    ((label, said),) = engine_rows(artifact.manifest)
    assert label == "not measuring on the engine"
    assert re.match("warning: the input of '.*' is rounded within an operator that it lacks.*it runs backwards", said)
    weights = qc.export(parse(BACKWARDS, zero=[0]), "reference", tmp_path / "b", formats=["int8-channel"])
    assert weights.manifest["engine"]["rel_l2"] < ROUNDING  # rounded weights need no hook


def test_a_value_whose_type_nothing_states_is_rounded(parse, tmp_path):
    model = parse("""g (float[n,32] x, bool c) => (float[n,16] y) <float[32,32] a, float[32,16] b> {
        p = If (c) <then_branch = t () => (float[n,32] z) { z = MatMul(x, a) },
                    else_branch = f () => (float[n,32] w) { w = Identity(x) }>
        y = MatMul(p, b) }""")
    next(node for node in model.graph if node.op_type == "If").outputs[0].type = None
    manifest = qc.export(model, "reference", tmp_path / "out", formats=["nvfp4/nvfp4"], method="rtn").manifest
    assert manifest["engine"]["rel_l2"] < 1e-5


def test_what_the_engine_cannot_run_the_reference_does(parse, monkeypatch):
    graph = "g (float[n,32] x) => (float[n,16] y) <float[32,16] a> { y = MatMul(x, a) }"
    model = plan(parse(graph), Options("reference", formats=("nvfp4/nvfp4",), method="rtn"))
    x = {"x": np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)}
    with planned_run(model.clone(), get_target("reference"), "cpu") as run:
        want = dict(run(x))

    def fail(*_):
        raise InputError("the engine cannot run the graph: no memory")

    monkeypatch.setattr(FakeQuantized, "__call__", fail)
    with planned_run(model, get_target("reference"), "cpu") as run:
        assert compare(want, dict(run(x)))[0] < 1e-6
