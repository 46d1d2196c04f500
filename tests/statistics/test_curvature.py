"""Curvatures are those of the mathematics where it is known, and those of noise in the weights elsewhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
import torch

from qcompile.analysis.analyze import analyze
from qcompile.analysis.siblings import siblings_of
from qcompile.analysis.spaces import Analysis
from qcompile.choice.probe import probe
from qcompile.choice.samples import Samples
from qcompile.choice.scoring import site_loss
from qcompile.choice.trial import Trial
from qcompile.formats import get_format
from qcompile.run.data import Data
from qcompile.statistics.calibration import collect
from qcompile.statistics.curvature import curvatures, measure_curvatures
from qcompile.statistics.noise import noise_curvatures
from qcompile.statistics.sensitivity import Curvature, sensitivities
from qcompile.targets.scheme import Scheme
from qcompile.transforms import Hadamard


def analyzed(body: str, weights: dict[str, np.ndarray], ends: str = "(float[N,L,6] x) => (float[N,L,K] y)") -> Analysis:
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 21]> g {ends} {{ {body} }}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items())
    return analyze(ir.from_proto(onnx.shape_inference.infer_shapes(proto)))


def measured(analysis: Analysis, batches: list[dict[str, np.ndarray]], logits: set[str]) -> dict[str, Curvature]:
    return curvatures(analysis.model, analysis.sites, Data(tuple(batches), random=False), logits)


def test_of_a_site_that_writes_the_output() -> None:
    """Half its relative error is the metric."""
    rng = np.random.default_rng(0)
    analysis = analyzed("[one] y = MatMul(x, a)", {"a": rng.standard_normal((6, 40))})
    batches = [{"x": rng.standard_normal((16, 12, 6), np.float32)} for _ in range(4)]
    found = measured(analysis, batches, set())["one"]
    assert found.weight == pytest.approx(0.5, rel=0.15)
    assert found.input == pytest.approx(0.5, rel=0.15)
    assert found.coherence == pytest.approx(1, rel=0.15)
    assert found.shrink == pytest.approx(0.5, rel=0.4)  # of one number a window, not of one for each weight


def test_of_logits() -> None:
    """The Fisher information of a softmax is known: ``diag(p) - p pᵀ``."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((6, 5)).astype(np.float32)
    analysis = analyzed("[one] y = MatMul(x, a)", {"a": weight})
    batches = [{"x": rng.standard_normal((8, 64, 6), np.float32)} for _ in range(4)]
    found = measured(analysis, batches, {"y"})["one"]
    x = torch.from_numpy(np.concatenate([batch["x"] for batch in batches]).reshape(-1, 6)).double()
    w = torch.from_numpy(weight).double()
    p = torch.softmax(x @ w, -1)
    trace = 1 - p.square().sum(-1)
    size, energy = x.square().sum(-1), (x @ w).square().sum()
    by_weight = 0.5 * (size * trace).mean() / (5 * size.sum() / energy)
    fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    through = torch.einsum("ik,nkl,il->n", w, fisher, w)
    by_input = 0.5 * (size * through / 6).mean() / (w.square().sum() * size.sum() / 6 / energy)
    assert found.weight == pytest.approx(float(by_weight), rel=0.1)
    assert found.input == pytest.approx(float(by_input), rel=0.1)


@pytest.mark.parametrize(("second", "agreement"), [(1.0, 2.0), (-0.5, 0.2), (None, 1.0)])
def test_errors_of_an_input_act_through_all_that_read_it(second: float | None, agreement: float) -> None:
    """One output adds up two sites that are multiples of each other; another keeps those apart that are not."""
    rng = np.random.default_rng(4)
    a = rng.standard_normal((6, 8))
    b = a * second if second is not None else np.zeros((6, 8))
    if second is None:
        a[:, 4:], b[:, 4:] = 0, rng.standard_normal((6, 4))
    analysis = analyzed("[one] h = MatMul(x, a) [two] g = MatMul(x, b) y = Add(h, g)", {"a": a, "b": b})
    batches = [{"x": rng.standard_normal((32, 12, 6), np.float32)} for _ in range(4)]
    found = measured(analysis, batches, set())
    within = 0.1 if second is None else 1e-4
    assert found["one"].agreement == found["two"].agreement == pytest.approx(agreement, abs=within)


def test_errors_that_act_alike_add_up() -> None:
    """The output sums over all rows: where they are equal, the effect of the weight grows with their number."""
    analysis = analyzed(
        "[one] h = MatMul(x, a) axes = Constant<value_ints=[1]>() y = ReduceSum(h, axes)",
        {"a": np.random.default_rng(2).standard_normal((6, 8))}, "(float[N,L,6] x) => (float[N,1,8] y)",
    )  # fmt: skip
    x = np.repeat(np.random.default_rng(3).standard_normal((32, 1, 6), np.float32), 10, axis=1)
    assert measured(analysis, [{"x": x}], set())["one"].coherence == pytest.approx(10, rel=1e-3)


def test_it_is_what_noise_in_the_weights_shows() -> None:
    rng = np.random.default_rng(4)
    weights = {"t": rng.standard_normal((30, 6)), "a": rng.standard_normal((6, 24)), "b": rng.standard_normal((24, 30))}
    body = "[table] e = Gather(t, x) [one] h = MatMul(e, a) u = Tanh(h) [two] y = MatMul(u, b)"
    analysis = analyzed(body, weights, "(int64[N,L] x) => (float[N,L,30] y)")
    data = Data(({"x": rng.integers(0, 30, (64, 32))},) * 8, random=False)
    found = curvatures(analysis.model, analysis.sites, data, {"y"})
    noise = sensitivities(analysis.model, analysis.sites, data, tokens=2048)
    e = weights["t"][data.batches[0]["x"]].reshape(-1, 6)
    u = np.tanh(e @ weights["a"])
    for name, x, w in (("one", e, weights["a"]), ("two", u, weights["b"])):
        unit = (w**2).sum() / len(w) * (x**2).sum() / ((x @ w) ** 2).sum()  # of the output, for one of the weight
        assert found[name].weight == pytest.approx(noise[name] / unit, rel=0.35)
    assert found["table"].weight == pytest.approx(noise["table"], rel=0.35)
    assert found["table"].input == 0


def test_what_gradients_do_not_reach_is_left_out() -> None:
    rng = np.random.default_rng(5)
    weights = {"a": rng.standard_normal((6, 6)), "b": rng.standard_normal((6, 6))}
    batches = [{"x": rng.standard_normal((2, 6, 6), np.float32)}]
    body = "[one] h = MatMul(x, a) d = Det(h) s = Unsqueeze(d, c) y = Mul(h, s)"
    analysis = analyzed("c = Constant<value_ints=[1,2]>() " + body, weights, "(float[N,6,6] x) => (float[N,6,6] y)")
    said: list[tuple[str, str, str]] = []
    data = Data(tuple(batches), random=False)
    found = curvatures(analysis.model, analysis.sites, data, set(), decline=lambda *entry: said.append(entry))
    assert found == {}  # no gradient of a determinant
    assert said[0][:2] == ("d", "computing it in torch")
    assert "no row for this operator; onnxruntime computes it, without gradients" in said[0][2]
    assert said[1] == ("*", "measuring by gradients what errors cost", "they stop at Det 'd'")
    reads = analyzed("[one] h = MatMul(x, a) [two] y = MatMul(x, b)", weights, "(float[N,6,6] x) => (float[N,6,6] y)")
    assert measured(reads, batches, set())["two"].weight > 0
    assert measured(reads, batches, set())["one"] == Curvature(0, 0, 0)  # nothing reads its output


def test_the_rest_has_the_level_of_gradients_or_their_median() -> None:
    """A kernel with groups has no gradients here: noise, or the median, stands for them; nothing where they stop."""
    rng = np.random.default_rng(9)
    weights = {"a": rng.standard_normal((6, 6)), "k": rng.standard_normal((6, 1, 3)), "b": rng.standard_normal((6, 8))}
    body = "[one] h = MatMul(x, a) t = Transpose<perm=[0,2,1]>(h) [deep] c = Conv<group=6,pads=[1,1]>(t, k) "
    analysis = analyzed(body + "u = Transpose<perm=[0,2,1]>(c) [two] y = MatMul(u, b)", weights)
    data, said = Data(({"x": rng.standard_normal((8, 5, 6), np.float32)},), random=False), []
    found = measure_curvatures(analysis.model, analysis.sites, {}, data, lambda *to: said.append(to), noise=False)
    known = [own for name, own in found.items() if name != "deep"]
    assert len(known) == 2
    assert found["deep"].weight == pytest.approx(sum(own.weight for own in known) / 2)
    assert found["deep"].felt is None
    assert said[-1][::2] == ("deep", "gradients do not reach it: it counts as the median of the others")
    values = {g.name: g.reading for g in siblings_of(analysis.sites)}
    statistics = collect(analysis.model, values, data)
    levelled = measure_curvatures(analysis.model, analysis.sites, statistics, data, lambda *to: said.append(to))
    by_name = {site.name: site for site in analysis.sites}
    ordered = [by_name[name] for name in ("deep", "one", "two")]  # each has noise of its own by its place
    noise = noise_curvatures(analysis.model, ordered, statistics, data)
    levels = [levelled[name].weight / noise[name].weight for name in ("one", "two")]
    assert levelled["deep"].weight / noise["deep"].weight == pytest.approx(sum(levels) / 2)
    body = "[one] h = MatMul(x, a) d = Det(h) s = Unsqueeze(d, c) y = Mul(h, s)"
    analysis = analyzed("c = Constant<value_ints=[1,2]>() " + body, weights, "(float[N,6,6] x) => (float[N,6,6] y)")
    data = Data(({"x": rng.standard_normal((2, 6, 6), np.float32)},), random=False)
    assert measure_curvatures(analysis.model, analysis.sites, {}, data, lambda *to: said.append(to), noise=False) == {}
    assert said[-1][2] == "errors of all sites count alike, relative to outputs"


def test_rows_of_a_table_cost_what_they_are_read() -> None:
    rng = np.random.default_rng(6)
    weights = {"t": rng.standard_normal((40, 32)), "b": rng.standard_normal((32, 20))}
    weights["t"][20:] *= 100  # never read: as large as their errors are, they cost nothing
    body = "[table] e = Gather(t, x) [two] y = MatMul(e, b)"
    analysis = analyzed(body, weights, "(int64[N,L] x) => (float[N,L,20] y)")
    data = Data(({"x": rng.integers(0, 20, (16, 32))},) * 4, random=False)
    found = curvatures(analysis.model, analysis.sites, data, {"y"})["table"]
    assert found.shares.sum() == pytest.approx(1)
    assert not found.shares[20:].any()
    (table,) = (site for site in analysis.sites if site.input is None)
    scheme = Scheme(get_format("int4-g32"))
    trial = Trial(analysis.model, [], [table], data, {"y"})
    measured = trial.divergences({"table": scheme}, {}).mean()
    assert site_loss(probe(table, None, found), scheme) == pytest.approx(measured, rel=0.4)
    blind = replace(found, shares=None)
    assert site_loss(probe(table, None, blind), scheme) > 100 * measured


@pytest.mark.parametrize("name", ["int4-g32", "int8-channel/int8-channel", "mxfp4/mxfp4"])
def test_errors_that_are_felt_predict_the_divergence(name: str) -> None:
    """One large channel makes errors anything but alike in all directions."""
    rng = np.random.default_rng(7)
    weights = {"a": rng.standard_normal((32, 64)) / 6, "b": rng.standard_normal((64, 30)) / 8}
    weights["a"][:, :4] *= 6
    analysis = analyzed("[one] h = MatMul(x, a) u = Tanh(h) [two] y = MatMul(u, b)", weights,
                        "(float[N,L,32] x) => (float[N,L,30] y)")  # fmt: skip
    batches = tuple({"x": rng.standard_normal((16, 16, 32), np.float32)} for _ in range(8))
    data, groups = Data(batches, random=False), siblings_of(analysis.sites)
    found = curvatures(analysis.model, analysis.sites, data, {"y"})
    statistics = collect(analysis.model, {group.name: group.reading for group in groups}, data)
    trial, scheme = Trial(analysis.model, groups, [], data, {"y"}), Scheme.parse(name)
    for group in groups:
        for transform in (None, Hadamard(group.width, 0)):
            (site,) = group.sites
            measured = trial.divergences({site.name: scheme}, {group.name: transform}).mean()
            samples = Samples.of(statistics[group.name])
            felt = site_loss(probe(site, samples, found[site.name]), scheme, transform)
            assert felt == pytest.approx(measured, rel=0.35)


def test_operators_of_onnxruntime_that_stand_beside_the_sites() -> None:
    """The determinant of what no site computes stops no gradient that is measured."""
    rng = np.random.default_rng(9)
    batches = [{"x": rng.standard_normal((2, 6, 6), np.float32)}]
    body = "c = Constant<value_ints=[1,2]>() [one] h = MatMul(x, a) d = Det(x) s = Unsqueeze(d, c) y = Mul(h, s)"
    ends = "(float[N,6,6] x) => (float[N,6,6] y)"
    analysis = analyzed(body, {"a": rng.standard_normal((6, 6))}, ends)
    assert measured(analysis, batches, set())["one"].weight > 0


def test_of_outputs_that_depend_on_no_site() -> None:
    rng = np.random.default_rng(8)
    body = "[one] h = MatMul(x, a) i = ArgMax<axis=-1>(h) y = Tanh(x)"
    ends = "(float[N,6] x) => (float[N,6] y, int64[N,1] i)"
    analysis = analyzed(body, {"a": rng.standard_normal((6, 6))}, ends)
    found = measured(analysis, [{"x": rng.standard_normal((4, 6), np.float32)}], set())
    assert found["one"] == Curvature(0, 0, 0)
