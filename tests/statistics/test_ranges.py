"""Calibrators, the histograms that they read, and the choice among them by what readers lose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import qcompile as qc
from qcompile.analysis.patches import Reading
from qcompile.formats.static import STATIC_FORMATS, Range
from qcompile.run.data import Data
from qcompile.statistics.calibrators import CALIBRATORS, calibrated, percentile
from qcompile.statistics.histograms import BINS, Histogram
from qcompile.statistics.ranges import Wanted, learn_ranges

INT8, UINT8 = STATIC_FORMATS["int8-static"], STATIC_FORMATS["uint8-static"]


def histogram_of(*parts: np.ndarray) -> Histogram:
    found = Histogram()
    for part in parts:
        found.add(torch.from_numpy(np.asarray(part, np.float32)))
    return found


def test_a_histogram_is_that_of_all_values_in_any_order():
    parts = [np.random.default_rng(n + 3).standard_normal(5000) * 10.0**n for n in range(-3, 3)] + [np.zeros(7)]
    one, other = histogram_of(*parts), histogram_of(*parts[::-1])
    whole = np.concatenate(parts).astype(np.float32)
    assert (one.low, one.high) == (whole.min(), whole.max())
    assert one.counts.sum() == whole.size
    np.testing.assert_array_equal(one.counts, other.counts)
    limit = 2.0 ** np.ceil(np.log2(np.abs(whole).max()))
    want, _ = np.histogram(whole, BINS, (-limit, limit))
    np.testing.assert_array_equal(one.counts, want)


def test_percentile_100_is_max_and_99_leaves_out_a_part():
    seen = histogram_of(np.random.default_rng(0).standard_normal(100000))
    assert percentile(100)(seen, INT8) == (seen.low, seen.high)
    low, high = percentile(99)(seen, INT8)
    np.testing.assert_allclose([low, high], [-2.5758, 2.5758], atol=0.05)  # quantiles of the normal distribution


@pytest.mark.parametrize("name", ["entropy", "mse"])
def test_what_is_even_is_not_clipped(name):
    seen = histogram_of(np.random.default_rng(0).uniform(-1, 1, 200000))
    low, high = CALIBRATORS[name](seen, INT8)
    assert low < -0.97
    assert high > 0.97


@pytest.mark.parametrize("name", ["entropy", "mse", "percentile-99.99"])
def test_what_is_rare_is_clipped(name):
    rare = [np.random.default_rng(0).standard_normal(200000), [70.0]]
    within = calibrated(histogram_of(*rare), INT8)
    assert within[name].scale < 0.5 * within["max"].scale


def test_least_squares_are_those_of_all_even_clips():
    x = np.random.default_rng(0).standard_t(3, 50000).astype(np.float32)
    seen, values = histogram_of(x), torch.from_numpy(x)

    def error(low: float, high: float) -> float:
        return float((Range.spanning(INT8, low, high).round(values) - values).double().square().mean())

    best = min(error(seen.low * clip, seen.high * clip) for clip in np.linspace(0.02, 1, 50))
    assert error(*CALIBRATORS["mse"](seen, INT8)) <= best * 1.02


MODEL = """g (float[n,16] x) => (float[n,4] y) <float[16,4] w> { h = Relu(x)\n y = MatMul(h, w) }"""


def data_of(x: np.ndarray, held_out: np.ndarray) -> Data:
    return Data(({"x": x},), random=False, held_out=tuple({"x": row[None]} for row in held_out))


def test_the_calibrator_is_the_one_by_which_readers_err_least(parse):
    """One feature is large and nobody reads it: to clip it costs nothing."""
    x = np.random.default_rng(0).standard_normal((512, 16)).astype(np.float32)
    x[:, 3] *= 1000
    data, model = data_of(x[:448], x[448:]), parse(MODEL)
    weight = torch.ones(4, 16)
    weight[:, 3] = 0
    blind = learn_ranges(model, {"h": Wanted(UINT8, [(Reading("h", -1), lambda: weight)])}, data)["h"]
    sighted = learn_ranges(model, {"h": Wanted(UINT8)}, data)["h"]
    assert blind.errors[blind.calibrator] == min(blind.errors.values())
    assert set(blind.errors) == set(CALIBRATORS)
    assert blind.range.scale < 0.2 * sighted.range.scale
    assert sighted.range.zero_point == 0  # behind a Relu no code is wasted on what never comes


def test_data_that_is_no_number_is_refused(parse):
    x = np.full((8, 16), np.inf, np.float32)
    with pytest.raises(qc.QCompileError, match="the data gives NaN or infinity at 'h'"):
        learn_ranges(parse(MODEL), {"h": Wanted(INT8)}, data_of(x, x[:4]))


def test_what_no_value_reaches_has_no_range(parse):
    model = parse(
        """g (float[n,16] x) => (float[m,4] y) <float[16,4] w, int64[1] none = {0}, int64[1] axis = {0}>
        { h = Slice(x, none, none, axis)\n y = MatMul(h, w) }"""
    )
    x = np.ones((8, 16), np.float32)
    assert learn_ranges(model, {"h": Wanted(INT8)}, data_of(x, x[:4])) == {}
