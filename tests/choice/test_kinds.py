"""Kinds by name: each leaves a graph the function that it is, offline where the freedom allows; and GPTQ foretold."""

from __future__ import annotations

import changes
import numpy as np
import onnx_ir as ir
import pytest
import torch

import qcompile as qc
from qcompile.analysis.siblings import Siblings, siblings_of
from qcompile.choice.candidates import named_candidate
from qcompile.choice.compensation import Compensation
from qcompile.choice.fits import Fit
from qcompile.choice.kinds import FITTED, KINDS, NAMED
from qcompile.choice.placement import Placement
from qcompile.choice.scoring import probes_of
from qcompile.choice.transforms import place
from qcompile.compiler import prepare, turn
from qcompile.formats import fake_quantize
from qcompile.ir.widen import to_double
from qcompile.rounding.gptq import gptq
from qcompile.run.compare import compare
from qcompile.run.data import Data, example_inputs, hold_out
from qcompile.run.session import evaluate_double
from qcompile.stages import Prepared
from qcompile.statistics.calibration import collect
from qcompile.statistics.collected import Statistics
from qcompile.targets.scheme import Scheme
from qcompile.transforms import Hadamard, smoothing
from qcompile.transforms.freedom import Freedom

#: A norm with two readers, a gate, a pair of maps with nothing between: rotations, scales, any matrix.
GRAPH = """g (float[6,5,32] x) => (float[6,5,7] y)
    <float[32] one = {ONES}, float[32,32] e, float[32,48] u, float[32,48] g, float[48,32] d, float[32,16] a,
     float[16,32] b, float[32,7] h>
    { s = MatMul(x, e)\n n = RMSNormalization(s, one)\n p = MatMul(n, u)\n q = MatMul(n, g)\n z = Relu(q)
      m = Mul(p, z)\n o = MatMul(m, d)\n t = Add(s, o)\n l = MatMul(t, a)\n k = MatMul(l, b)\n r = Add(t, k)
      f = RMSNormalization(r, one)\n y = MatMul(f, h) }""".replace("ONES", ", ".join(["1"] * 32))
SHAPES = {"e": (32, 32), "u": (32, 48), "g": (32, 48), "d": (48, 32), "a": (32, 16), "b": (16, 32), "h": (32, 7)}
SCHEME = Scheme.parse("int4-g16/int4-g16")


@pytest.fixture(scope="module")
def source() -> ir.Model:
    """Some outputs of its weights are loud, so that something is to be gained."""
    made, rng = changes.parse(GRAPH, opset=23), np.random.default_rng(0)
    for name, shape in SHAPES.items():
        loud = 1 + 8 * (rng.random(shape[-1]) < 0.15)
        weight = (rng.standard_normal(shape) * loud / shape[0] ** 0.5).astype(np.float32)
        made.graph.initializers[name].const_value = ir.tensor(weight, name=name)
    return made


def placed(model: ir.Model, kind: str) -> tuple[Prepared, list[Siblings], Placement]:
    """The model before transforms of a kind are put in, and these, from data of which sequences are held out."""
    prepared = prepare(model)
    groups = siblings_of(prepared.analysis.sites)
    rng = np.random.default_rng(2)
    (given,) = prepared.model.graph.inputs
    batches = [{"x": rng.standard_normal((6, 5, 32)).astype(given.dtype.numpy())} for _ in range(16)]
    data = hold_out(Data(tuple(batches), random=False), prepared.model)
    statistics = collect(prepared.model, {group.name: group.reading for group in groups}, data)
    probes = {group: probes_of(group, statistics[group.name]) for group in groups}
    return prepared, groups, place(prepared.analysis, probes, lambda _: SCHEME, kind=kind, statistics=statistics)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_the_function_stays_whatever_is_placed(source, kind):
    wide = to_double(source)
    inputs = example_inputs(wide)
    want = evaluate_double(wide, inputs)
    prepared, groups, placement = placed(wide, kind)
    assert not placement.plain
    turn(prepared, groups, placement)
    assert compare(want, evaluate_double(prepared.model, inputs))[0] < 1e-12


def test_norms_take_over_diagonals_and_nothing_stays(source):
    prepared, groups, placement = placed(source, "diagonal")
    norms = {norm.node for norm in prepared.analysis.norms}
    assert set(placement.behind) == {group.name for group in groups if group.value.producer() in norms}
    assert len(placement.behind) == 2
    assert {transform.kind for transform in placement.offline.values()} == {"diagonal"}
    assert not placement.online
    before = len(prepared.model.graph)
    turn(prepared, groups, placement)
    assert len(prepared.model.graph) == before


@pytest.mark.parametrize("kind", NAMED)
def test_a_kind_is_made_only_where_the_freedom_allows_it(kind):
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.standard_normal((200, 64)) * np.exp(rng.standard_normal(64)))
    fit = Fit(rows.T @ rows / 200, torch.eye(64, dtype=torch.float64), 200.0)
    groups = Freedom.GENERAL, Freedom.ORTHOGONAL, Freedom.ORTHOGONAL_ONES, Freedom.MONOMIAL, Freedom.PERMUTATION
    for freedom in groups:
        made = named_candidate(kind, 64, SCHEME, 0, freedom, fit, offline=True)
        assert (made is not None) == (NAMED[kind].freedom in freedom)
        assert made is None or made.group in freedom
    assert (named_candidate(kind, 64, SCHEME, 0, Freedom.GENERAL, None, offline=True) is None) == (kind in FITTED)


@pytest.mark.parametrize("transform", [None, "hadamard", "diagonal"])
def test_the_part_of_an_error_that_gptq_leaves_is_foretold(transform):
    """Over inputs of more and less correlation, in any basis."""
    predicted, measured = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        common = rng.standard_normal((4000, 6)) @ rng.standard_normal((6, 64)) * seed / 4
        rows = torch.from_numpy(rng.standard_normal((4000, 64)) + common)
        weight = torch.from_numpy(rng.standard_normal((96, 64))).float()
        moment = rows.T @ rows / len(rows)
        bases = {None: None, "hadamard": Hadamard(64, 0), "diagonal": smoothing(moment.diagonal(), torch.ones(64))}
        own = bases[transform]
        learned = Compensation(Statistics(moment.numpy(), rows.float().numpy(), len(rows), effective=float(len(rows))))
        if own is not None:
            moment, weight = own.apply(own.apply(moment, 0), 1), own.dual().apply(weight, -1)
        nearest = fake_quantize(weight, SCHEME.weight) - weight
        made_up = gptq(weight, moment, SCHEME.weight).quantized.dequantize().float() - weight
        left = [float(((change.double() @ moment) * change.double()).sum()) for change in (nearest, made_up)]
        measured.append(left[1] / left[0])
        predicted.append(learned.remaining(nearest.square().sum(0), own))
    np.testing.assert_allclose(predicted, measured, rtol=0.2)
    assert max(predicted) > 3 * min(predicted)


def test_formats_may_come_in_any_order(source, tmp_path):
    """Transforms and formats are one decision: not the first format that is named decides on the transforms."""
    rng, found = np.random.default_rng(1), []
    rows = rng.standard_normal((24, 6, 5, 32)) * (1 + 9 * (np.arange(32) % 7 == 0))
    data = [{"x": row.astype(np.float32)} for row in rows]
    for number, formats in enumerate((["int4-g16/int4-g16", "int8-channel"], ["int8-channel", "int4-g16/int4-g16"])):
        artifact = qc.export(
            source, "reference", tmp_path / str(number), formats=formats, budget={"bits": 5.5}, method="rtn",
            calibration=data,
        )  # fmt: skip
        keys = "sites", "assignment", "spaces", "online_transforms", "decisions"
        found.append({key: artifact.manifest[key] for key in keys})
    assert found[0] == found[1]
    assert {site["format"] for site in found[0]["sites"]} == {"int4-g16", "int8-channel"}
    decisions = found[0]["decisions"]
    assert {entry["what"] for entry in decisions} == {"transform", "format"}
    spaces = {space["id"] for space in found[0]["spaces"]}
    assert all(entry["loss"] <= entry["next_loss"] * 1.000001 for entry in decisions if entry["of"] in spaces)
