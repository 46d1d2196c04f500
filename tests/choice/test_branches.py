"""Branches compete with formats: predicted and paid for as they are made, and made where they are worth it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from changes import parse

import qcompile as qc
from qcompile.analysis.analyze import analyze
from qcompile.analysis.siblings import siblings_of
from qcompile.choice.branches import Apart, with_branches
from qcompile.choice.costs import cost_of
from qcompile.choice.scoring import probes_of, site_error
from qcompile.choice.splits import split_of
from qcompile.compiler import prepare
from qcompile.errors import InputError
from qcompile.formats import fake_quantize
from qcompile.ir.required import constant
from qcompile.passes.split_branches import SplitBranches
from qcompile.run.data import Data
from qcompile.statistics.calibration import collect
from qcompile.statistics.collected import Statistics
from qcompile.targets.registry import get_target
from qcompile.targets.scheme import Scheme

GRAPH = """g (float[n,64] x) => (float[n,64] y) <float[64,64] a, float[64,64] b, float[64,64] c> {
    [one] h = MatMul(x, a)
    s = Sigmoid(h)
    [two] k = MatMul(s, b)
    t = Sigmoid(k)
    [three] l = MatMul(t, c)
    y = Sigmoid(l) }"""

FEW, FINE = Scheme.parse("int4-channel/int8-channel"), Scheme.parse("int8-channel/int8-channel")


def model() -> ir.Model:
    """Three products; the weight of the first is all but of rank 8, with outputs that loud directions reach alike."""
    found, rng = parse(GRAPH), np.random.default_rng(1)
    loud = rng.standard_normal((64, 8)) @ rng.standard_normal((8, 64)) * 3
    for name, value in found.graph.initializers.items():
        array = rng.standard_normal((64, 64)) * 0.1 + (loud if name == "a" else 0)
        value.const_value = ir.tensor(array.astype(np.float32) / 8, name=name)
    return found


def rows(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 64)).astype(np.float32)


def float_outputs(x: dict[str, np.ndarray]) -> np.ndarray:
    return ort.InferenceSession(ir.to_proto(model()).SerializeToString()).run(None, x)[0]


def known(found) -> dict[str, Statistics]:
    wanted = {group.name: group.reading for group in siblings_of(found.analysis.sites)}
    return collect(found.model, wanted, Data(({"x": rows(256, 2)},), random=False))


def test_what_is_predicted_is_what_the_pass_makes() -> None:
    found = prepare(model())
    groups, statistics = siblings_of(found.analysis.sites), known(prepare(model()))
    group = next(own for own in groups if own.name == "x")
    (scheme,) = [s for s in with_branches([FEW, FINE], [8], FINE) if isinstance(s, Apart)]
    item = probes_of(group, statistics["x"]).items[0]
    under, whole = item.under(scheme), item.weight.clone()
    SplitBranches([group], statistics, FEW, scheme.branch).apply(found.state)
    rest = torch.from_numpy(constant(group.sites[0].node.inputs[1]).numpy().T.copy())
    torch.testing.assert_close(under.weight, rest, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(under.beside.whole(under.weight), whole, rtol=1e-4, atol=1e-5)
    # the error: of the rest, and of both thin products, relative to all that the site puts out
    read = item.samples.rows
    error = read @ (fake_quantize(rest, FEW.weight) - rest).T
    energy = (read @ whole.T).square().sum()
    least = float(error.square().sum() / energy)
    assert least < site_error(item, scheme) < site_error(item, FEW)
    assert site_error(item, scheme.alone) == site_error(item, FEW)


@pytest.mark.parametrize("unit", ["bits", "bytes", "latency", "bops"])
def test_what_is_paid_is_what_the_parts_cost(unit: str) -> None:
    target, found = get_target("reference"), prepare(model())
    group = next(own for own in siblings_of(found.analysis.sites) if own.name == "x")
    (scheme,) = [s for s in with_branches([FEW, FINE], [8], FINE) if isinstance(s, Apart)]
    paid = cost_of([(group.sites[0], scheme)], [group.sites[0].name], target)[unit]
    SplitBranches([group], {}, FEW, scheme.branch).apply(found.state)
    parts = [s for s in analyze(found.model).sites if s.name.startswith("one")]
    assert len(parts) == 3
    pairs = [(site, FINE if ".branch." in site.name else FEW) for site in parts]
    assert paid == pytest.approx(cost_of(pairs, [site.name for site in parts], target)[unit], rel=0.02)


def exported(folder: Path, budget: dict[str, float], **options) -> qc.Artifact:
    return qc.export(
        model(), "reference", folder, formats=["int4-channel/int8-channel", "int8-channel/int8-channel"],
        calibration={"x": rows(256, 3)}, budget=budget, transforms="none", **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, qc.Artifact]:
    folder = tmp_path_factory.mktemp("branches")
    return {
        word: exported(folder / word.partition("{")[0], {"bits": 5.0}, split=[word] if word != "whole" else [])
        for word in ("whole", "auto{least=8,most=8}")
    }


def test_a_site_takes_a_branch_where_it_is_worth_its_bits(both: dict[str, qc.Artifact]) -> None:
    manifest = both["auto{least=8,most=8}"].manifest
    beside = {site["name"] for site in manifest["sites"] if ".branch." in site["name"]}
    assert len(beside) == 2
    assert len(manifest["sites"]) == 5
    spent = manifest["budget"]["bits"]["spent"]
    assert spent == pytest.approx(4 + 8 * 8 * 128 / (3 * 64 * 64))  # beside them, not among them
    assert both["whole"].manifest["budget"]["bits"]["spent"] <= 5.0


def test_it_errs_less_at_no_more_bits(both: dict[str, qc.Artifact]) -> None:
    x = {"x": rows(64, 4)}
    want = float_outputs(x)
    off = {word: np.square(artifact.load()(x)["y"] - want).sum() for word, artifact in both.items()}
    assert off["auto{least=8,most=8}"] < off["whole"]


def test_nothing_is_apart_where_no_bits_are_left(tmp_path: Path) -> None:
    manifest = exported(tmp_path / "a", {"bits": 4.0}, split=["auto"]).manifest
    assert not [site for site in manifest["sites"] if ".branch." in site["name"]]
    assert [e for e in manifest["declined"] if e["reason"] == "within these budgets no site loses less with one"]


def test_without_a_budget_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs a budget"):
        qc.export(model(), "reference", tmp_path / "a", split=["auto"])
    assert not (tmp_path / "a").exists()


def test_ranks_double() -> None:
    assert split_of("auto").ranks == [8, 16, 32]
    assert split_of("auto{least=3,most=13}").ranks == [3, 6, 12]
    with pytest.raises(InputError, match="at most the most"):
        split_of("auto{least=9,most=8}")
