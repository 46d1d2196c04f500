"""What the formats of recipes promise, on weights of a shipped model or on numbers whose errors are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qcompile.analysis.matrices import weight_matrix
from qcompile.analysis.siblings import siblings_of
from qcompile.choice.candidates import named_candidate, wush_candidates
from qcompile.choice.fits import Fit
from qcompile.formats import fake_quantize, get_format, quantize
from qcompile.preparation import prepare
from qcompile.recipes.recipe import all_recipes
from qcompile.run.data import load_data
from qcompile.statistics.calibration import collect
from qcompile.targets.scheme import Scheme
from qcompile.transforms import BlockDense, BlockDiagonal, Compose, Hadamard, has_hadamard
from qcompile.transforms.dense import in_half
from qcompile.transforms.freedom import Freedom

ZOO = Path(__file__).parent.parent.parent / "examples" / "zoo"


@pytest.fixture(scope="module")
def weights() -> list[torch.Tensor]:
    """Those of the shipped DiT."""
    found = [weight_matrix(site) for site in prepare(str(ZOO / "dit.onnx")).analysis.sites]
    return [weight for weight in found if min(weight.shape) >= 32]


def scheme_of(recipe: str) -> Scheme:
    (name,) = all_recipes()[recipe].options["formats"]
    return Scheme.parse(name)


def squares(weight: torch.Tensor, fmt: object) -> torch.Tensor:
    return (fake_quantize(weight, fmt) - weight).square()


def test_square_blocks_have_one_code_both_ways(weights: list[torch.Tensor]) -> None:
    """nvfp4-2d: ``Q(Wᵀ) = Q(W)ᵀ``, which blocks of one row do not have."""
    fmt = scheme_of("nvfp4-2d").weight
    for weight in weights:
        assert torch.equal(fake_quantize(weight.T.contiguous(), fmt), fake_quantize(weight, fmt).T)
    plain = get_format("nvfp4")
    assert not torch.equal(fake_quantize(weights[0].T.contiguous(), plain), fake_quantize(weights[0], plain).T)


def test_a_scale_of_more_range_does_not_underflow(weights: list[torch.Tensor]) -> None:
    """ue5m3: blocks far below the loudest keep a scale, which E4M3 rounds to zero."""
    weight = weights[0].clone()
    weight[:, :16] *= 1e-2
    weight[0, -1] = 2000.0
    made = {name: quantize(weight, get_format(name)) for name in ("e2m1-ue5m3", "nvfp4")}
    assert scheme_of("ue5m3").weight is made["e2m1-ue5m3"].format
    quiet = {name: q.scales[1:, 0] for name, q in made.items()}
    assert (quiet["nvfp4"] == 0).any()
    assert (quiet["e2m1-ue5m3"] > 0).all()
    lost = {name: float((q.dequantize() - weight)[:, :16].square().sum()) for name, q in made.items()}
    assert lost["e2m1-ue5m3"] < 0.1 * lost["nvfp4"]


def test_uniform_levels_shrink_nothing() -> None:
    """ufp4: on Gaussian blocks of 16 with exact scales, ``Σ x x̂ / Σ x²`` and the error of both grids."""
    x = torch.randn(1 << 16, 16, generator=torch.Generator().manual_seed(0))
    found = {}
    for name in ("e1m2-g16-fp32", "e2m1-g16-fp32"):
        rounded = fake_quantize(x, get_format(name))
        found[name] = float((x * rounded).sum() / x.square().sum()), float((rounded - x).square().mean())
    assert found["e1m2-g16-fp32"] == (pytest.approx(1.0006, abs=4e-4), pytest.approx(0.0073, rel=0.02))
    assert found["e2m1-g16-fp32"] == (pytest.approx(0.996, abs=1e-3), pytest.approx(0.0089, rel=0.02))
    assert scheme_of("ufp4").weight.element.name == "e1m2"


def test_blocks_of_hadamard_matrices_serve_uniform_levels(weights: list[torch.Tensor]) -> None:
    """ufp4: with a loud weight in each block, spreading it lowers the error of the uniform grid."""
    fmt = scheme_of("ufp4").weight
    weight = weights[0].clone()
    weight[:, ::16] *= 8
    turned = BlockDiagonal(Hadamard(16), weight.shape[1] // 16).apply(weight, -1)
    assert squares(turned, fmt).sum() < 0.6 * squares(weight, fmt).sum()


def test_formats_that_choose_for_each_weight_err_no_more_than_each_choice(weights: list[torch.Tensor]) -> None:
    """llm-fp4 and nupes: the family against its members by the rule of the largest value."""
    for recipe in ("llm-fp4", "nupes"):
        fmt = scheme_of(recipe).weight
        for weight in weights:
            least = min(float(squares(weight, member).sum()) for member in fmt.members)
            assert float(squares(weight, fmt).sum()) <= least * (1 + 1e-6)


def test_a_power_of_one_is_the_uniform_grid(weights: list[torch.Tensor]) -> None:
    """nupes: its member of power one has the levels of integers."""
    (uniform,) = (member for member in scheme_of("nupes").weight.members if member.element.name.endswith("-1"))
    other = fake_quantize(weights[0], get_format("int4-channel"))
    torch.testing.assert_close(fake_quantize(weights[0], uniform), other, rtol=1e-5, atol=1e-7)


def test_a_choice_of_two_targets_errs_no_more_in_any_block(weights: list[torch.Tensor]) -> None:
    """four-over-six, against one target with the same scale of the whole weight."""
    fmt, plain = scheme_of("four-over-six").weight, get_format("nvfp4")
    for weight in weights:
        made = quantize(weight, fmt)
        six = quantize(weight, plain, tensor_scale=made.tensor_scale)
        ours, theirs = (
            (q.dequantize() - weight).square().unflatten(1, (-1, 16)).sum(-1)[:, : weight.shape[1] // 16]
            for q in (made, six)
            if weight.shape[1] % 16 == 0
        )
        assert (ours <= theirs * (1 + 1e-5) + 1e-12).all()


# -- transforms ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs() -> list[torch.Tensor]:
    """Rows of what the sites of the shipped DiT read, which has outliers behind its gates and in its modulation."""
    prepared = prepare(str(ZOO / "dit.onnx"))
    groups = [group for group in siblings_of(prepared.analysis.sites) if has_hadamard(group.width)]
    data = load_data(ZOO / "dit_calibration.npz", prepared.model)
    found = collect(prepared.model, {group.name: group.reading for group in groups}, data, moments=False)
    return [torch.from_numpy(found[group.name].sample) for group in groups if group.width >= 64]


def kurtosis(x: torch.Tensor) -> float:
    x = x - x.mean()
    return float(x.pow(4).mean() / x.square().mean().square())


def test_rotations_spread_outliers(inputs: list[torch.Tensor]) -> None:
    """quarot: the kurtosis of an input falls where it is largest, to about that of a normal distribution."""
    loud = sorted(inputs, key=kurtosis)[-6:]
    for x in loud:
        turned = Hadamard(x.shape[1], 3).apply(x, -1)
        assert kurtosis(x) > 6
        assert kurtosis(turned) < 0.5 * kurtosis(x)


def test_two_rotations_make_any_vector_normal() -> None:
    """two-block: one sends a unit vector to equal magnitudes, two to nearly normal numbers, the more so the wider."""
    distances = []
    for size in (64, 256, 1024):
        first, second = Hadamard(size, 5), Hadamard(size, 6)
        both = Compose((first, second))
        torch.testing.assert_close(both.matrix() @ both.matrix().mT, torch.eye(size, dtype=torch.float64))
        unit = torch.eye(size, dtype=torch.float64)[:8]
        once = first.apply(unit, -1).abs() * size**0.5
        torch.testing.assert_close(once, torch.ones_like(once))
        twice = (both.apply(unit, -1) * size**0.5).flatten().sort().values
        normal = torch.distributions.Normal(0.0, 1.0).cdf(twice.float())
        steps = torch.arange(1, len(twice) + 1) / len(twice)
        distances.append(float((normal - steps).abs().max()))
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.04


def fit_of(blocks: torch.Tensor, grams: torch.Tensor) -> Fit:
    return Fit(torch.block_diag(*blocks), torch.block_diag(*grams), 1e12)


def test_one_closed_form_for_all_blocks() -> None:
    """wush-shared: that of each block where all agree, and both mean moments equal and flat where they do not."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, 4, 32, 48, generator=generator, dtype=torch.float64)
    blocks, grams = (part @ part.mT / 48 for part in drawn)
    alike = fit_of(blocks[:1].expand(4, -1, -1), grams[:1].expand(4, -1, -1))
    same = named_candidate("wush-shared", 128, Scheme.parse("mxfp4"), 0, Freedom.GENERAL, alike, offline=False)
    each = wush_candidates(alike, Scheme.parse("mxfp4"))["wush-32"]
    alone = in_half(BlockDense(torch.stack([same.matrix()[:32, :32]] * 4)))  # as those of each are stored
    torch.testing.assert_close(alone.matrix(), each.matrix(), rtol=1e-6, atol=1e-9)
    fit = fit_of(blocks, grams)
    shared = named_candidate("wush-shared", 128, Scheme.parse("mxfp4"), 0, Freedom.GENERAL, fit, offline=False)
    t, dual = (transform.matrix()[:32, :32] for transform in (shared, shared.dual()))
    after, weighed = t @ blocks.mean(0) @ t.mT, dual @ grams.mean(0) @ dual.mT
    torch.testing.assert_close(after, weighed, rtol=0, atol=2e-3 * float(after.diagonal().mean()))
    torch.testing.assert_close(after.diagonal(), after.diagonal().mean().expand(32), rtol=2e-3, atol=0)


def test_spread_weights_have_the_error_of_the_grid(weights: list[torch.Tensor]) -> None:
    """higgs: behind Hadamard matrices, the relative error of every weight is that of the grid on normal values, 2 %."""
    fmt = scheme_of("higgs").weight
    known = json.loads((ZOO.parent.parent / "tests" / "data" / "values.json").read_text())
    expected = known["lloyd_max_gauss"]["n16"]["value"]
    lost = whole = 0.0
    for weight in weights:
        turned = Hadamard(weight.shape[1], 0).apply(weight, -1)
        lost, whole = lost + float(squares(turned, fmt).sum()), whole + float(turned.square().sum())
    assert lost / whole == pytest.approx(expected, rel=0.02)
