"""The expected error on distributions and sizes that no table lists, against the encoder itself."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from qcompile.errors import InputError
from qcompile.formats import FORMATS, fake_quantize
from qcompile.formats.expected import expected_error, sampled_error
from qcompile.formats.grids.distributions import as_distribution
from qcompile.formats.grids.lloyd_max import lloyd_max

SOURCES = {
    "t5": scipy.stats.t(5), "uniform": scipy.stats.uniform(-1, 2), "logistic": scipy.stats.logistic(),
    "shifted": scipy.stats.norm(1.5, 0.7), "exponential": scipy.stats.expon(),
}  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "name", ["int4-g32", "uint4-g64", "int4-signedmax-g64", "mxfp4-even", "nf4-g64", "int8-g128", "e2m1-ue5m3"]
)
def test_quadrature_agrees_with_the_encoder(name, source):
    fmt, rows = FORMATS[name], 1 << 13
    x = SOURCES[source].rvs((rows, fmt.group), random_state=1).astype(np.float32)
    x = torch.from_numpy(x)
    noise, energy = (fake_quantize(x, fmt) - x).double().square().sum(1), x.double().square().sum(1)
    error = float(noise.sum() / energy.sum())
    deviation = float((noise - error * energy).std() / energy.mean() / rows**0.5)
    assert abs(expected_error(fmt, SOURCES[source]) - error) < 4.5 * deviation


RECORDED = json.loads((Path(__file__).parents[1] / "data" / "expected_errors.json").read_text())
FAMILIES = sorted({re.sub(r"-(g\d+|channel).*", "", name) for name in FORMATS})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_encoder_has_the_recorded_error(family):
    """Recorded by quadrature or by an independent sampler: ``record_expected_errors.py``."""
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    energy = x.double().square().sum(1)
    for name in (name for name in FORMATS if re.sub(r"-(g\d+|channel).*", "", name) == family):
        fmt, expected = FORMATS[name], RECORDED[name]
        scale = 1.1 * 2.0**-8 if fmt.tensor_scale else None
        noise = (fake_quantize(x, fmt, tensor_scale=scale) - x).double().square().sum(1)
        error = float(noise.sum() / energy.sum())
        deviation = float((noise - error * energy).view(16, 16).sum(1).std() / energy.sum()) * 4
        assert abs(error - expected) < 5 * deviation + 2e-3 * expected, name


@pytest.mark.parametrize("name", ["nvfp4-4over6", "e2m1-4over6-g16"])
def test_formats_that_choose_a_scale_are_sampled(name):
    assert expected_error(FORMATS[name], samples=1 << 18) == sampled_error(FORMATS[name], samples=1 << 18)


def test_a_whole_axis_needs_its_size():
    with pytest.raises(InputError, match="give its size"):
        expected_error(FORMATS["int4-channel"])
    assert expected_error(FORMATS["int4-channel"], group=64) == pytest.approx(0.0115776, rel=1e-4)


def test_error_does_not_depend_on_the_unit_of_a_float_scale():
    fmt = FORMATS["int4-g32-fp32"]
    assert expected_error(fmt, scipy.stats.norm(0, 3e-4)) == pytest.approx(expected_error(fmt), rel=1e-9)


@pytest.mark.parametrize("n", [1, 2, 5, 17])
def test_lloyd_max_of_a_uniform_density_is_uniform(n):
    grid = lloyd_max(n, scipy.stats.uniform(-1, 2))
    assert np.allclose(grid.levels, -1 + (2 * np.arange(n) + 1) / n, atol=1e-9)
    assert grid.error == pytest.approx(1 / (3 * n * n), rel=1e-9)
    assert grid.entropy == pytest.approx(np.log2(n), abs=1e-9)


def test_lloyd_max_of_a_laplace_density():
    """Two levels of a Laplace density stand at plus and minus one: E|x| = 1, and the error is 2 - 1."""
    grid = lloyd_max(2, "laplace")
    assert np.allclose(grid.levels, [-1, 1], atol=1e-10)
    assert grid.error == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("source", SOURCES)
def test_levels_are_centroids(source):
    density = as_distribution(SOURCES[source])
    levels = np.array(lloyd_max(7, density).levels)
    edges = np.concatenate([[density.low], (levels[1:] + levels[:-1]) / 2, [density.high]])
    mass, first, _ = np.diff(density.moments(edges), axis=1)
    assert np.allclose(first / mass, levels, rtol=1e-6, atol=1e-8)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="no distribution 'gausian'"):
        as_distribution("gausian")
    with pytest.raises(InputError, match="at least one level"):
        lloyd_max(0)
