"""Sites are planned, and the graph says so; GPTQ is held against rounding to nearest on rows that it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import pytest
import torch
from stack_cases import BODIES, body_model

import qcompile as qc
from qcompile.analysis.patches import Reading
from qcompile.analysis.siblings import siblings_of
from qcompile.compiler import prepare
from qcompile.errors import InputError
from qcompile.passes.quantize import Quantize
from qcompile.rounding.sequential import Walk
from qcompile.run.data import Data, example_inputs, hold_out
from qcompile.stages import Prepared
from qcompile.statistics.calibration import collect
from qcompile.targets.eligible import quantizable
from qcompile.targets.plans import SCHEME, Plan, planned
from qcompile.targets.registry import get_target
from qcompile.targets.scheme import FLOAT, Scheme

TABLE = """g (int64[n,3] i) => (float[n,3,16] y) <float[9,32] t, float[32,32] a, float[32,16] b> {
    x = Gather(t, i)
    h = MatMul(x, a)
    s = Sigmoid(h)
    y = MatMul(s, b) }"""

#: They are looked up before their input is known: a walk computes with their float weights.
LOOKED_UP = """g (int64[n,2] i, float[n,32] e) => (float[n,2,16] y)
    <float[32,32] a, float[3,32,32] w, float[32,16] b> {
    k = Gather<axis=0>(w, i)
    p = MatMul(e, a)
    q = Sigmoid(p)
    z = Einsum<equation="nd,nkdf->nkf">(q, k)
    s = Sigmoid(z)
    y = MatMul(s, b) }"""

GRAPHS: dict[str, Callable[[Callable], ir.Model]] = {
    "a table": lambda parse: parse(TABLE),
    "experts": lambda parse: parse(LOOKED_UP),
    **{name: lambda _, name=name: body_model(name) for name in BODIES},
}


def reading(*names: str) -> dict[str, Reading]:
    return {name: Reading(name, -1) for name in names}


def written(model: ir.Model) -> bytes:
    """All that a file says of a graph."""
    return ir.to_proto(model).SerializeToString(deterministic=True)


def quantize(prepared: Prepared, schemes: Mapping[str, Scheme], method: str = "rtn") -> bool:
    """What the pass returns; with GPTQ, it learns from two small batches."""
    sites = quantizable(prepared.analysis, get_target("reference"))[0]
    groups = siblings_of(sites)
    data = Data(tuple(example_inputs(prepared.model, seed=seed, sizes={"n": 64}) for seed in (0, 1)), random=False)
    wanted = {group.value.name: group.reading for group in groups if not group.nested}
    found = {} if method == "rtn" else collect(prepared.model, wanted, data)
    tables = [site for site in sites if site.input is None]
    pairs = [(group, None) for group in groups]
    return Quantize(pairs, tables, schemes, found, method, data=data).apply(prepared.state)


def alike(prepared: Prepared, name: str) -> dict[str, Scheme]:
    """One scheme for every site."""
    return dict.fromkeys((site.name for site in prepared.analysis.sites), Scheme.parse(name))


def same(one: Plan, other: Plan) -> bool:
    a, b = one.weight, other.weight
    return one.scheme == other.scheme and torch.equal(a.codes, b.codes) and torch.equal(a.scales, b.scales)


@pytest.mark.parametrize("name", GRAPHS)
def test_what_a_file_says_changes_where_the_pass_says_so(parse, name):
    prepared = prepare(GRAPHS[name](parse))
    schemes, last = alike(prepared, "int4-g32/int8-g32"), prepared.analysis.sites[-1].name
    said, changed = [written(prepared.model)], []
    mixed, none = schemes | {last: Scheme.parse("int4-g32")}, dict.fromkeys(schemes, FLOAT)
    for wanted in (schemes, schemes, mixed, schemes, none):
        changed.append(quantize(prepared, wanted))
        said.append(written(prepared.model))
    assert changed == [True, False, True, True, True]
    assert changed == [before != after for before, after in zip(said, said[1:])]
    assert said[0] == said[5]
    assert not planned(prepared.model)


@pytest.mark.parametrize("method", ["rtn", "search", "gptq"])
@pytest.mark.parametrize("name", GRAPHS)
def test_another_run_makes_the_same_plans(parse, name, method):
    """A walk must not look at plans that the last run left behind it."""
    prepared = prepare(GRAPHS[name](parse))
    found = []
    for scheme in ("int4-g32/int8-g32", "nvfp4/nvfp4", "int4-g32/int8-g32"):
        quantize(prepared, alike(prepared, scheme), method)
        found.append(dict(planned(prepared.model)))
    first, _, again = found
    assert first.keys() == again.keys()
    assert all(same(first[node], again[node]) for node in first)


def test_only_sites_with_a_format_are_planned(parse):
    prepared = prepare(parse(TABLE))
    names = [site.name for site in prepared.analysis.sites]
    schemes = alike(prepared, "nvfp4/nvfp4") | {names[1]: FLOAT}
    assert quantize(prepared, schemes)
    assert [node.name for node, _ in planned(prepared.model)] == [names[0], names[2]]
    marks = [node.metadata_props.get(SCHEME) for node in prepared.model.graph]
    assert [mark for mark in marks if mark is not None] == ["nvfp4/nvfp4"] * 2


@pytest.mark.parametrize("name", BODIES)
def test_sites_in_bodies_are_planned_where_they_stand(name):
    prepared = prepare(body_model(name))
    quantize(prepared, alike(prepared, "int4-g32"))
    assert {node for node, _ in planned(prepared.model)} == {site.node for site in prepared.analysis.sites}


def test_a_codebook_is_planned_as_the_table_that_is_stored(parse):
    prepared = prepare(parse(TABLE))
    site = prepared.analysis.sites[-1]
    quantize(prepared, alike(prepared, "int4-g32") | {site.name: Scheme.parse("higgs-p1-n16")})
    plan = dict(planned(prepared.model))[site.node]
    assert plan.scheme.weight == plan.weight.format
    assert site.node.metadata_props[SCHEME] == "higgs-p1-n16"


def test_an_unknown_method_changes_nothing(parse):
    prepared = prepare(parse(TABLE))
    quantize(prepared, alike(prepared, "int4-g32"))
    before = written(prepared.model), planned(prepared.model)
    with pytest.raises(InputError, match="unknown method 'best'; there are"):
        Quantize((), (), {}, {}, "best").apply(prepared.state)
    assert (written(prepared.model), planned(prepared.model)) == before


GRAPH = "g (float[n,64] x) => (float[n,48] y) <float[64,48] w> { a = Abs(x)\n y = MatMul(a, w) }"


def rows(alike: bool, model: ir.Model | None = None) -> np.ndarray:
    """Correlated rows; those that are held out are loud where the others are silent, unless all are alike."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1024, 16)) @ rng.standard_normal((16, 64))
    if model is not None and not alike:
        x[:, 32:] *= 0.01
        numbers = Data(({"x": np.arange(1024)},), random=False)
        kept = [int(row["x"][0]) for row in hold_out(numbers, model).held_out]
        x[kept] = x[kept, ::-1]
    return x.astype(np.float32)


@pytest.mark.parametrize("alike", [True, False])
def test_gptq_is_taken_where_it_holds_on_other_rows(parse, tmp_path, alike):
    np.savez(tmp_path / "x.npz", x=rows(alike, parse(GRAPH)))
    options = {"calibration": tmp_path / "x.npz", "formats": ["int4-g32"], "budget": {"bits": 4}, "transforms": "none"}
    learned = qc.export(parse(GRAPH), "cpu-int4", tmp_path / "out", **options)
    plain = qc.export(parse(GRAPH), "cpu-int4", tmp_path / "plain", **options, method="rtn")
    (site,) = learned.manifest["sites"]
    assert (site["held_out"]["gptq"] < site["held_out"]["nearest"]) == alike
    reasons = [entry["reason"] for entry in learned.manifest["declined"] if entry["what"] == "GPTQ"]
    assert len(reasons) == (not alike)
    assert all("32 sequences that it had not seen" in reason for reason in reasons)
    x = {"x": rows(alike, parse(GRAPH))[:32]}
    assert np.array_equal(learned.run(x)["y"], plain.run(x)["y"]) == (not alike)


@pytest.mark.parametrize("name", ["nupes4-g32", "llm-fp4-g32"])
@pytest.mark.parametrize("method", ["gptq", "comq", "search"])
def test_a_format_that_chooses_a_codebook_learns_in_it(parse, tmp_path, name, method):
    options = {"calibration": {"x": rows(True)}, "transforms": "none", "formats": name, "budget": {"bits": 4}}
    artifact = qc.export(parse(GRAPH), "reference", tmp_path / "out", method=method, **options)
    (site,) = artifact.manifest["sites"]
    learned, plain = site["held_out"].values()
    assert learned < plain
    assert not [entry for entry in artifact.manifest["declined"] if "codebook" in entry["reason"]]


@pytest.mark.parametrize("batch", [1, 5, 16])
def test_the_second_moment_has_not_seen_what_is_held_out(parse, batch):
    x = np.random.default_rng(1).standard_normal((80, 64)).astype(np.float32)
    data = Data(tuple({"x": x[i : i + batch]} for i in range(0, 80, batch)), random=False)
    found = collect(parse(GRAPH), reading("a"), hold_out(data, parse(GRAPH)), max_rows=80)["a"]
    kept, others = np.abs(x), {tuple(row) for rows in found.held_out for row in rows}
    seen = kept[[tuple(row) not in others for row in kept]].astype(np.float64)
    assert (found.rows, len(found.held_out)) == (72, 8)
    np.testing.assert_allclose(found.second_moment, seen.T @ seen / len(seen), rtol=1e-5)


def test_more_rows_than_are_learned_from_are_taken_from_all_batches(parse):
    """As many of each as suffice, by the rows of sequences held out; an input that sees one row each waits for none."""
    graph = parse("""g (float[n,s,64] x) => (float[n,s,8] y, float[n,8] p) <float[64,8] w, int64[1] one = {1}> {
        a = Abs(x)
        b = Neg(x)
        y = MatMul(a, w)
        first = ReduceMax<keepdims=0>(a, one)
        p = MatMul(first, w) }""")
    x = np.random.default_rng(1).standard_normal((80, 5, 64)).astype(np.float32)
    data = hold_out(Data(tuple({"x": part} for part in x.reshape(4, 20, 5, 64)), random=False), graph)
    found = collect(graph, reading("a", "b", "first"), data, max_rows=160)
    assert (found["a"].rows, found["first"].rows) == (160, 32)
    taken = np.concatenate([batch["x"] for batch in data.thinned(found["a"].sequences).batches]).reshape(-1, 64)
    moment = np.abs(taken.astype(np.float64)).T @ np.abs(taken) / len(taken)
    np.testing.assert_allclose(found["a"].second_moment, moment, rtol=1e-5)
    assert collect(graph, reading("a"), data, max_rows=10**6)["a"].rows == sum(data.sizes) * 5


EXPERTS = """g (float[n,32] x, int64[n,2] i) => (float[n,2,48] y) <float[4,32,48] w> {
    a = Abs(x)
    k = Gather<axis=0>(w, i)
    y = Einsum<equation="nd,nkdf->nkf">(a, k) }"""


def test_each_matrix_of_a_stack_learns_from_the_rows_of_its_expert(parse, tmp_path):
    rng = np.random.default_rng(0)
    i = np.stack([rng.permutation(3)[:2] for _ in range(1024)])
    bases = rng.standard_normal((3, 8, 32))  # an expert's rows lie in a space of their own
    x = np.einsum("nb,nbd->nd", rng.standard_normal((1024, 8)), bases[i[:, 0]]).astype(np.float32)
    i = np.stack([i[:, 0], i[:, 0] - 4], 1)  # the same expert twice, counted from either end
    np.savez(tmp_path / "x.npz", x=x, i=i)
    options = {"calibration": tmp_path / "x.npz", "formats": ["int4-g32"], "budget": {"bits": 4}, "transforms": "none"}
    learned = qc.export(parse(EXPERTS), "reference", tmp_path / "out", **options)
    plain = qc.export(parse(EXPERTS), "reference", tmp_path / "plain", **options, method="rtn")
    (site,) = learned.manifest["sites"]
    assert site["held_out"]["gptq"] < 0.5 * site["held_out"]["nearest"]
    (said,) = [entry for entry in learned.manifest["declined"] if entry["what"] == "GPTQ of every matrix"]
    assert said["reason"] == (
        "1 of its 4 matrices see too few rows of calibration data for their 32 features, and are rounded to nearest"
    )
    fresh = {"x": x[:64], "i": np.full((64, 2), 3)}  # of the expert that nobody chose
    assert np.array_equal(learned.run(fresh)["y"], plain.run(fresh)["y"])
    exact = {"x": x[:64], "i": i[:64]}
    assert learned.manifest["quantization"]["rel_l2"] < plain.manifest["quantization"]["rel_l2"]
    assert not np.array_equal(learned.run(exact)["y"], plain.run(exact)["y"])


def test_sequences_are_walked_through_and_what_cannot_be_learns_from_the_float_graph(parse, tmp_path, monkeypatch):
    graph = """g (float[n,64] x, int64 i) => (float[n,64] z) <float[64,64] v, float[64,64] w, float[64,64] u> {
        a = MatMul(x, v)
        s = SequenceConstruct(a, x)
        b = MatMul(a, w)
        c = SequenceAt(s, i)
        y = Add(b, c)
        z = MatMul(y, u) }"""
    np.savez(tmp_path / "x.npz", x=rows(alike=True), i=np.array(0))
    options = {"calibration": tmp_path / "x.npz", "formats": ["int4-g32/int8-g32"], "budget": {"bits": 4}}
    manifest = qc.export(parse(graph), "reference", tmp_path / "out", **options).manifest
    assert not [entry for entry in manifest["declined"] if "order of the graph" in entry["what"]]
    assert all(site["held_out"]["gptq"] <= site["held_out"]["nearest"] for site in manifest["sites"])

    def refuse(*_):
        raise InputError("onnxruntime cannot run a node of the graph by itself")

    monkeypatch.setattr(Walk, "_pass", refuse)
    manifest = qc.export(parse(graph), "reference", tmp_path / "other", **options).manifest
    (entry,) = [entry for entry in manifest["declined"] if "order of the graph" in entry["what"]]
    assert "by itself; the other sites learn from the float graph alone" in entry["reason"]
    assert all(site["held_out"]["gptq"] <= site["held_out"]["nearest"] for site in manifest["sites"])
