"""Ways to measure what errors cost: each is the formula that it stands for, and leads to an assignment of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from commands import refused

import qcompile as qc
from qcompile.analysis.analyze import analyze
from qcompile.analysis.matrices import weight_matrix
from qcompile.analysis.siblings import siblings_of
from qcompile.choice.probe import probe
from qcompile.choice.samples import Samples
from qcompile.choice.scoring import site_loss
from qcompile.errors import InputError
from qcompile.formats import fake_quantize, get_format
from qcompile.run.data import Data
from qcompile.statistics.calibration import collect
from qcompile.statistics.measures import MEASURES, largest_share, measured
from qcompile.statistics.sensitivity import Felt, sensitivities
from qcompile.targets.scheme import Scheme

#: Logits over a table that an input indexes; ``loud`` matters to them a hundred times as much as ``quiet``.
GRAPH = """g (int64[N,L] i) => (float[N,L,48] y)
    <float[48,32] t, float[32,32] loud, float[32,32] quiet, float[] s, float[32,48] u> {
    x = Gather(t, i)
    a = MatMul(x, loud)
    b = MatMul(x, quiet)
    c = Mul(b, s)
    h = Add(a, c)
    y = MatMul(h, u) }"""


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {n: rng.standard_normal(s) / 6 for n, s in (("loud", (32, 32)), ("quiet", (32, 32)), ("u", (32, 48)))}
    return found | {"t": rng.standard_normal((48, 32)), "s": np.array(0.1)}


def batches(count: int = 4) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"i": rng.integers(0, 48, (8, 16))} for _ in range(count)]


def of(parse, how: str) -> tuple[dict, dict, list]:
    analysis = analyze(parse(GRAPH, **{n: a.astype(np.float32) for n, a in weights().items()}))
    data = Data(tuple(batches()), random=False)
    statistics = collect(analysis.model, {g.name: g.reading for g in siblings_of(analysis.sites)}, data)
    said: list[tuple[str, ...]] = []
    found = measured(how, analysis.model, analysis.sites, statistics, data, lambda *entry: said.append(entry))
    return found, statistics, analysis.sites


@pytest.mark.parametrize("how", ["errors", "traces", "eigenvalues", "noise"])
def test_what_matters_more_costs_more(parse, how: str) -> None:
    found, statistics, sites = of(parse, how)
    scheme = Scheme.parse("int4-g32")
    losses = {}
    for site in sites:
        own = statistics.get(site.input.name) if site.input is not None else None
        samples = None if own is None else Samples.of(own)
        losses[site.weight.name] = site_loss(probe(site, samples, found[site.name]), scheme)
    assert losses["loud"] > 20 * losses["quiet"]
    assert sum(losses.values()) < 1


def test_traces_are_weighed_by_the_size_of_the_error(parse) -> None:
    """HAWQ-V2: ``½ · mean trace · ‖Ŵ - W‖²``, where errors of the weight are as even as noise."""
    found, _, sites = of(parse, "traces")
    (site,) = (site for site in sites if site.weight.name == "u")
    assert found[site.name].felt is None
    own = {name: torch.from_numpy(array.astype(np.float32)).double() for name, array in weights().items()}
    x = own["t"][torch.from_numpy(np.concatenate([batch["i"].reshape(-1) for batch in batches()]))]
    h = x @ own["loud"] + own["s"] * (x @ own["quiet"])
    p = torch.softmax(h @ own["u"], -1)
    trace = (h.square().sum(1) * (1 - p.square().sum(1))).mean()
    error = float((fake_quantize(weight_matrix(site), get_format("int4-g32")) - weight_matrix(site)).square().sum())
    relative = error * float(h.square().sum() / 32 / (h @ own["u"]).square().sum())
    hawq = 0.5 * float(trace) / own["u"].numel() * error
    assert found[site.name].weight * relative == pytest.approx(hawq, rel=0.1)


def test_eigenvalues_of_a_quadratic_loss_are_exact() -> None:
    """HAWQ: of ``½ ‖x Wᵀ‖²``, whose second derivatives are one second moment of the input for each output."""
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1, 1, 0.5, 0.1])
    outputs = torch.eye(4)
    felt = Felt(x.repeat_interleave(4, 0), outputs.repeat(7, 1))
    eigenvalues = torch.linalg.eigvalsh(x.T @ x)
    assert largest_share(felt) == pytest.approx(float(eigenvalues[-1] / (4 * eigenvalues.sum())), rel=1e-5)


def test_noise_is_that_of_the_linearity_theorem(parse) -> None:
    found, _, sites = of(parse, "noise")
    analysis = analyze(parse(GRAPH, **{n: a.astype(np.float32) for n, a in weights().items()}))
    alphas = sensitivities(analysis.model, analysis.sites, Data(tuple(batches()), random=False))
    assert alphas.keys() == found.keys()
    (table,) = (site for site in sites if site.input is None)
    assert found[table.name].weight == pytest.approx(alphas[table.name])
    assert all(own.weight == own.input for own in found.values() if own is not found[table.name])


def test_a_bit_is_six_decibels() -> None:
    """Of evenly spread weights, with one scale for all."""
    weight = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = [(fake_quantize(weight, get_format(f"int{b}-channel")) - weight).square().mean() for b in range(4, 9)]
    decibels = [10 * float(torch.log10(a / b)) for a, b in zip(noise, noise[1:], strict=False)]
    assert decibels == pytest.approx([6.02] * 4, abs=0.8)
    assert sum(decibels) / 4 == pytest.approx(6.02, abs=0.35)


def test_an_export_assigns_by_each(parse, tmp_path: Path) -> None:
    model = {n: a.astype(np.float32) for n, a in weights().items()}
    options = {"formats": ["int4-g32", "int8-g32"], "method": "rtn", "transforms": "none", "budget": {"bits": 6}}
    calibration = {"i": np.concatenate([batch["i"] for batch in batches()])}
    for how in MEASURES:
        folder = tmp_path / how
        artifact = qc.export(
            parse(GRAPH, **model), "cpu-int4", folder, sensitivity=how, calibration=calibration, **options
        )
        manifest = artifact.manifest
        assert manifest["options"]["sensitivity"] == how
        formats = {site["name"]: site["format"] for site in manifest["sites"]}
        assert set(formats.values()) == {"int4-g32", "int8-g32"}
        alphas = {site["alpha"] for site in manifest["sites"]}
        assert (alphas == {None}) == (how == "even")
        assert (manifest["quantization"]["predicted_loss_delta"] is None) == (how == "even")


def test_other_words_are_refused(parse, tmp_path: Path) -> None:
    ir.save(parse(GRAPH), tmp_path / "m.onnx")
    words = ["export", tmp_path / "m.onnx", "--target", "cpu-int4", "-o", tmp_path / "out", "--sensitivity", "eevn"]
    assert refused(tmp_path, *words).startswith("unknown sensitivity 'eevn'; there are errors, ")
    with pytest.raises(InputError, match="unknown sensitivity"):
        of(parse, "eevn")


@pytest.mark.parametrize(
    ("formats", "bound", "budget"),
    [
        (["int4-g32/int4-g32", "int8-channel/int8-channel"], 40.0, {"bops": 40}),
        (["int4-g32/int8-channel", "int8-channel/int8-channel"], 40.0, {"bops": 40, "bits": 7}),
    ],
)
def test_bit_operations_are_bounded(parse, tmp_path: Path, formats: list[str], bound: float, budget: dict) -> None:
    """The bits of weights times those of inputs, in the mean over products; with two bounds by an integer program."""
    model = {n: a.astype(np.float32) for n, a in weights().items()}
    calibration = {"i": np.concatenate([batch["i"] for batch in batches()])}
    artifact = qc.export(
        parse(GRAPH, **model), "reference", tmp_path / "out", formats=formats, method="rtn", transforms="none",
        budget=budget, calibration=calibration,
    )  # fmt: skip
    manifest = artifact.manifest
    products = [site for site in manifest["sites"] if site["activation"] is not None]
    assert len(products) == 3
    total = sum(np.prod(site["weight_shape"]) for site in products)
    each = [site["bits"] * get_format(site["activation"]).bits for site in products]
    spent = sum(np.prod(site["weight_shape"]) * bits for site, bits in zip(products, each, strict=True))
    assert manifest["budget"]["bops"]["spent"] == pytest.approx(spent / total)
    assert manifest["budget"]["bops"]["spent"] <= bound
    assert manifest["assignment"]["gap"] == 0
    assert manifest["assignment"]["method"] == ("ilp" if len(budget) > 1 else "dp")
