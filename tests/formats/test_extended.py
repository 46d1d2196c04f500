"""Formats with a structure of their own: vectors, lattices, planes, two axes, families; edges are in test_edges."""

import hashlib
import itertools
import json
import math
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from qcompile.errors import InputError
from qcompile.formats import EXTENDED_FORMATS, FORMATS, fake_quantize, quantize
from qcompile.formats.expected import expected_error
from qcompile.formats.grids.clvq import grid_error, lloyd, plane_quadrature, search_grid
from qcompile.formats.grids.distributions import as_distribution
from qcompile.formats.grids.e8p import decode_e8p, encode_e8p, patterns
from qcompile.formats.grids.lloyd_max import grid_moments, lloyd_max
from qcompile.formats.grids.vectors import higgs_grid
from qcompile.formats.structured.family import power_element
from qcompile.formats.structured.twin_log import twin_log_levels
from qcompile.formats.structured.two_axis import TwoAxisFormat, level_deviations

VALUES = json.loads((Path(__file__).parents[1] / "data" / "values.json").read_text())


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(value, x):
    return float((value - x).double().square().sum() / x.double().square().sum())


# ---- HIGGS -------------------------------------------------------------------------------------------------------


@cache
def error_of(n):
    return grid_error(torch.tensor(higgs_grid(2, n), dtype=torch.float64), 1200)


@pytest.mark.parametrize("name", [n for n in VALUES["higgs_grids_mse_per_dim"] if "_p2_" in n])
def test_grids_reach_the_best_known_error(name):
    n = int(re.search(r"n(\d+)$", name).group(1))
    assert error_of(n) < VALUES["higgs_grids_mse_per_dim"][name]["value"] * 1.001


def test_shipped_errors_are_those_of_the_grids():
    shipped = json.loads((Path(__file__).parents[2] / "qcompile/formats/grids/data/higgs.json").read_text())
    for name, entry in shipped.items():
        if name.startswith("p2"):
            grid = torch.tensor(entry["points"], dtype=torch.float64)
            assert len(set(map(tuple, entry["points"]))) == len(entry["points"]) == int(name[4:])
            assert error_of(len(grid)) == pytest.approx(entry["error"], rel=2e-5)


@pytest.mark.parametrize("n", [16, 64, 256])
def test_shipped_grids_are_stationary(n):
    grid = torch.tensor(higgs_grid(2, n), dtype=torch.float64)
    nodes, weights = plane_quadrature(800)
    assert (lloyd(grid[None], nodes, weights, 1)[0] - grid).abs().max() < 0.01


def test_one_dimension_is_lloyd_max():
    for name in ("hf_p1_n4", "hf_p1_n8", "hf_p1_n16"):
        reference = VALUES["higgs_grids_mse_per_dim"][name]
        levels = np.array(higgs_grid(1, int(name.split("_n")[1])))[:, 0]
        x = randn(1 << 20).double().numpy()
        error = np.abs(x[:, None] - levels).min(1) ** 2
        assert error.mean() == pytest.approx(reference["value"], abs=4 * error.std() / 1024)


def test_four_points_descend_to_a_product():
    """Four points in the plane: the square of the two-level grid, error 1 - 2/π a dimension."""
    nodes, weights = plane_quadrature(160)
    grids = lloyd(randn(8, 4, 2).double(), nodes, weights, 100)
    assert min(grid_error(grid, 400) for grid in grids) == pytest.approx(1 - 2 / math.pi, rel=2e-4)


@pytest.mark.slow
def test_the_search_finds_it_too():
    assert grid_error(search_grid(4, starts=8, rounds=2, steps=60), 1000) == pytest.approx(1 - 2 / math.pi, rel=2e-4)


@pytest.mark.parametrize("n", [16, 64, 256])
def test_codes_are_the_nearest_points(n):
    fmt = EXTENDED_FORMATS[f"higgs-p2-n{n}"]
    x = randn(4, 1024)
    q = quantize(x, fmt)
    rms = x.square().mean(1, keepdim=True).sqrt()
    pairs = (x / rms).view(4, -1, 1, 2)
    distance = (pairs - torch.tensor(higgs_grid(2, n))).square().sum(-1)
    chosen = distance.gather(-1, q.codes.view(4, -1, 1).long())[..., 0]
    assert torch.allclose(chosen, distance.amin(-1), atol=1e-5)


# ---- E8P ---------------------------------------------------------------------------------------------------------


def test_e8p_patterns():
    table = patterns()
    assert table.shape == (256, 8)
    norms = table.square().sum(1)
    assert int((norms <= 10).sum()) == 227
    assert set(norms[227:].tolist()) == {12.0}
    assert len(set(map(tuple, table.tolist()))) == 256


def test_e8p_codes_are_those_of_the_authors():
    """The digest is that of the table which QuIP#'s ``get_full_grid`` fills, four times the points as int8."""
    points = decode_e8p(torch.arange(1 << 16, dtype=torch.int32))
    assert hashlib.sha256((points * 4).to(torch.int8).numpy().tobytes()).hexdigest() == E8P_DIGEST


E8P_DIGEST = "ea3883a85a627590ca74626320a2a691943386a8c89ac72cdb6388bfe7da5cc0"


def test_e8p_points_are_distinct_lattice_points():
    codes = torch.arange(1 << 16, dtype=torch.int32)
    points, parity = decode_e8p(codes), sum((codes >> i) & 1 for i in range(8)) % 2
    assert len(torch.unique(points, dim=0)) == 1 << 16
    lattice = points - (0.25 - 0.5 * parity).unsqueeze(1)
    assert (lattice - 0.5 == (lattice - 0.5).round()).all()
    assert (lattice.sum(1) % 2 == 0).all()


def test_e8p_finds_the_nearest_of_all_points():
    points = decode_e8p(torch.arange(1 << 16, dtype=torch.int32))
    x = torch.cat([randn(64, 8), randn(16, 8) * 3])
    distance = torch.cdist(x.double(), points.double())
    found = (decode_e8p(encode_e8p(x)).double() - x).norm(dim=1)
    assert torch.allclose(found, distance.amin(1), atol=1e-5)
    assert torch.equal(decode_e8p(encode_e8p(points)), points)


def test_e8p_error():
    reference = VALUES["e8p"]
    x = randn(256, 1024)
    assert relative(fake_quantize(x, EXTENDED_FORMATS["e8p"]), x) == pytest.approx(
        reference["mse_per_dim"], abs=reference["tol"]
    )


# ---- EDEN, TurboQuant --------------------------------------------------------------------------------------------

KINDS = {"tq_S1": "turboquant{}", "biased": "eden{}", "unbiased": "eden{}-unbiased"}


@pytest.mark.parametrize(("entry", "kind"), list(itertools.product(VALUES["eden_finite_d_mc"], KINDS)))
def test_eden_in_finitely_many_dimensions(entry, kind):
    reference = VALUES["eden_finite_d_mc"][entry][kind]
    d, bits = map(int, re.fullmatch(r"d(\d+)_b(\d)", entry).groups())
    x = randn((1 << 20) // d, d, seed=bits)
    fmt = EXTENDED_FORMATS[KINDS[kind].format(bits)]
    error = (fake_quantize(x, fmt) - x).square().sum(1) / x.square().sum(1)
    deviation = math.hypot(float(error.std()) / len(x) ** 0.5, reference["se"])
    # The scale is stored in bfloat16, whose rounding adds (2^-9)² / 3 at most.
    assert abs(float(error.mean()) - reference["value"]) < 4 * deviation + 2e-6


def test_unbiased_means_unbiased():
    x, fmt = randn(1, 64), EXTENDED_FORMATS["eden1-unbiased"]
    estimate = torch.stack([fmt.quantize(x, seed=seed).dequantize() for seed in range(500)]).mean(0)
    assert relative(estimate, x) < 4 * 0.57 / 500 * 1.5


def test_rotation_needs_no_power_of_two():
    x = randn(512, 96)
    assert relative(fake_quantize(x, EXTENDED_FORMATS["turboquant4"]), x) == pytest.approx(0.0093, rel=0.03)
    spike = torch.zeros(4, 96)
    spike[:, 3] = 5.0
    assert relative(fake_quantize(spike, EXTENDED_FORMATS["turboquant4"]), spike) < 0.02


# ---- planes, two axes, families ----------------------------------------------------------------------------------


def test_trit_planes_represent_what_they_can_exactly():
    trits = torch.randint(-1, 2, (2, 4, 128), generator=torch.Generator().manual_seed(0)).float()
    x = trits[0] * 1.5 + trits[1] * 0.5
    assert relative(fake_quantize(x, EXTENDED_FORMATS["ptqtp-g128"]), x) < 1e-4


def test_trit_planes_are_a_fixed_point_of_least_squares():
    x = randn(64, 128)
    q = quantize(x, EXTENDED_FORMATS["ptqtp-g128"])
    first, second = q.codes // 3 - 1.0, q.codes % 3 - 1.0
    planes = torch.stack([first, second], -1).squeeze(1)
    best = planes @ torch.linalg.lstsq(planes, x.unsqueeze(-1)).solution
    ours, least = relative(q.dequantize(), x), relative(best.squeeze(-1), x)
    assert ours < least * 1.01


def test_two_axis_scales_undo_a_diagonal():
    x = randn(128, 256)
    outliers = torch.exp(randn(256, seed=1) * 2)
    plain, leveled = FORMATS["int4-g64"], EXTENDED_FORMATS["sinq-int4-g64"]
    worse = (fake_quantize(x * outliers, plain) / outliers - x).square().mean()
    better = (fake_quantize(x * outliers, leveled) / outliers - x).square().mean()
    assert better < worse / 10
    assert float(better) == pytest.approx(float((fake_quantize(x, plain) - x).square().mean()), rel=0.05)


def test_leveled_deviations():
    x = randn(200, 300) * torch.exp(randn(200, 1, seed=1)) * torch.exp(randn(300, seed=2))
    column = level_deviations(x, 16)
    y = x / column
    y = y / y.square().mean(1, keepdim=True).sqrt()
    deviations = y.square().mean(0).sqrt()
    assert float(deviations.max() / deviations.min()) < 1.02
    assert float(column.log().mean().abs()) < 1e-5
    with pytest.raises(InputError, match="two axes"):
        quantize(randn(5), EXTENDED_FORMATS["sinq-int4-g64"])


@pytest.mark.parametrize("name", [name for name, fmt in EXTENDED_FORMATS.items() if isinstance(fmt, TwoAxisFormat)])
def test_leveling_costs_nothing_where_all_is_level(name):
    fmt, x = EXTENDED_FORMATS[name], randn(512, 256)
    assert relative(fake_quantize(x, fmt), x) == pytest.approx(relative(fake_quantize(x, fmt.inner), x), rel=0.03)


def nine_levels(a, b):
    """The error of the sums of two trit-planes with these scales on N(0, 1)."""
    levels = np.sort([i * a + j * b for i in (-1, 0, 1) for j in (-1, 0, 1)])
    _, mass, first, second = grid_moments(levels, as_distribution("normal"))
    return float((second - 2 * levels * first + levels**2 * mass).sum())


@pytest.mark.parametrize("name", [name for name in EXTENDED_FORMATS if name.startswith("ptqtp")])
def test_trit_planes_reach_the_best_pair_of_scales(name):
    """Fitted to each group, they are a little better than the best pair for the whole distribution."""
    best = minimize(lambda s: nine_levels(*s), [1.4, 0.5], method="Nelder-Mead").fun
    x = randn(64, 1024)
    assert 0.8 * best < relative(fake_quantize(x, EXTENDED_FORMATS[name]), x) < 1.01 * best


@pytest.mark.parametrize("name", [name for name in EXTENDED_FORMATS if re.match(r"nupes|llm-fp", name)])
def test_families_have_the_error_of_their_best_member(name):
    fmt, x = EXTENDED_FORMATS[name], randn(512, 256)
    best = min(expected_error(member, "normal", fmt.group or 256, points=512) for member in fmt.members)
    ratio = relative(fake_quantize(x, fmt), x) / best
    assert 0.75 < ratio < 1 if fmt.search else abs(ratio - 1) < 0.02


@pytest.mark.parametrize("name", [name for name in EXTENDED_FORMATS if name.startswith("higgs")])
def test_higgs_has_the_error_of_its_grid(name):
    """A group lies on a sphere, which for 1024 values is within a percent of normal."""
    fmt, x = EXTENDED_FORMATS[name], randn(256, 1024)
    n = 2**fmt.code_bits
    expected = lloyd_max(n).error if fmt.dimension == 1 else error_of(n)
    assert relative(fake_quantize(x, fmt), x) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", ["higgs-p1-n16", "higgs-p2-n64", "e8p", "turboquant3", "eden2-unbiased"])
def test_a_point_is_its_own_code(name):
    fmt = EXTENDED_FORMATS[name]
    codes = torch.arange(2**fmt.code_bits, dtype=torch.int32)
    points = fmt._points(codes.view(-1, 1)) / fmt.stretch
    assert torch.equal(fmt._nearest(points), codes)


def test_a_family_takes_its_best_member():
    uniform = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    heavy = torch.distributions.StudentT(2.0).sample((64, 64))
    fmt = EXTENDED_FORMATS["llm-fp4-g64"]
    assert quantize(uniform, fmt).format.element.name == "e1m2"
    assert quantize(heavy, fmt).format.element.name in ("e2m1", "e3m0")
    for x in (uniform, heavy):
        assert relative(fake_quantize(x, fmt), x) <= min(relative(fake_quantize(x, m), x) for m in fmt.members)


def test_power_levels():
    assert power_element(3, 0.5).levels == pytest.approx((-1, -4 / 9, -1 / 9, 0, 1 / 9, 4 / 9, 1))


# ---- two logarithms ----------------------------------------------------------------------------------------------


def test_twin_log_levels():
    levels = twin_log_levels(torch.tensor([4.0, 3.0]), torch.tensor([64, 32], dtype=torch.uint8), 3)
    assert levels[:4].tolist() == [0.5, 1, 2, 4]
    assert levels[4:].tolist() == pytest.approx([-3 / 8**0.5, -1.5, -3 / 2**0.5, -3])


def test_twin_log_halves_have_grids_of_their_own():
    """Values on two grids, one for each sign, come back: what one grid for both could not do."""
    tops, steps = torch.tensor([2.0, 0.5]), torch.tensor([48, 16], dtype=torch.uint8)
    levels = twin_log_levels(tops, steps, 4)
    x = levels[torch.randint(0, 16, (8, 512), generator=torch.Generator().manual_seed(0))]
    q = quantize(x, EXTENDED_FORMATS["twin-log4-g128"])
    assert q.steps[0, 0].tolist() == [48, 16]
    assert torch.equal(q.dequantize(), x)


def test_twin_log_clips_where_that_is_better():
    x = torch.cat([randn(1, 4095).abs() * 0.1 + 1, torch.tensor([[1.5]])], 1)
    assert quantize(x, EXTENDED_FORMATS["twin-log3-channel"]).tops[0, 0, 0] < 1.5


@pytest.mark.parametrize("name", [name for name in EXTENDED_FORMATS if name.startswith("twin-log")])
def test_twin_log_has_no_larger_error_than_the_paper(name):
    """Equation 7 of the paper, each half from its least to its largest magnitude, rounding logarithms."""
    fmt, x = EXTENDED_FORMATS[name], randn(64, 256) * torch.exp(randn(64, 256, seed=1))
    group, last = fmt.group or 256, 2 ** (fmt.bits - 1) - 1
    logs = x.abs().log2().view(64, -1, group)
    value = torch.zeros_like(logs)
    for sign in (1, -1):
        inside = x.view_as(logs).sign() == sign
        low = logs.masked_fill(~inside, torch.inf).amin(-1, keepdim=True)
        high = logs.masked_fill(~inside, -torch.inf).amax(-1, keepdim=True)
        s = (high - low) / last
        z = (low / s).round()
        code = ((logs / s).round() - z).clamp(0, last)
        value = torch.where(inside, sign * torch.exp2(s * (code + z)), value)
    assert relative(fake_quantize(x, fmt), x) < relative(value.view(64, 256), x)
