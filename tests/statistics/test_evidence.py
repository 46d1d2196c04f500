"""Evidence of sequences: few must agree closely, many need not; noise passes about as seldom as it should."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.statistics.evidence import errs_less


@pytest.mark.parametrize(
    ("ours", "theirs", "less"),
    [
        ([0.5], [1.0], False),  # one sequence
        ([0.50, 0.52], [1.0, 1.0], True),
        ([0.20, 0.95], [1.0, 1.0], False),  # lower both times, but how much is chance
        ([1.0, 1.0], [1.0, 1.0], False),
        ([0.0, 0.0], [0.0, 0.0], False),
        ([0.0, 0.0], [1.0, 2.0], True),
        ([0.9, 0.9, 0.9, 9.0], [1.0, 1.0, 1.0, 1.0], False),  # mostly lower, but not in sum
    ],
)
def test_what_counts(ours, theirs, less):
    assert errs_less(np.array(ours), np.array(theirs)) == less


@pytest.mark.parametrize("count", [2, 8, 32])
def test_noise_seldom_passes(count):
    rng = np.random.default_rng(count)
    passed = [errs_less(*np.exp(0.3 * rng.standard_normal((2, count)))) for _ in range(2000)]
    assert 0.02 < np.mean(passed) < 0.07
