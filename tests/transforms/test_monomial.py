"""Scales and orders of channels, and other closed forms: exact on what they are made for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qcompile.errors import InputError
from qcompile.transforms import (
    Hadamard,
    Signal,
    by_magnitude,
    duquant,
    duquant_block,
    from_json,
    kronecker,
    kronecker_factors,
    matched,
    smoothing,
    zigzag,
)
from qcompile.transforms.fitted import wush, wush_of_moments
from qcompile.transforms.signal import leakage


def moment(size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(4 * size, size, generator=generator, dtype=torch.float64)
    rows = rows * torch.randn(size, generator=generator, dtype=torch.float64).exp()
    return rows.T @ rows / len(rows)


def test_half_smoothing_makes_energies_equal():
    inputs, weights = (moment(12, seed).diagonal().clamp(0.3, 4) for seed in (0, 1))
    values = smoothing(inputs, weights).values
    ratio = (inputs * values**2) / (weights / values**2)
    torch.testing.assert_close(ratio, ratio.mean().expand(12), rtol=1e-2, atol=0)  # up to what keeps silence finite
    flat = smoothing(inputs, weights, alpha=1.0).values ** 2 * inputs
    assert flat.max() / flat.min() < 1.05
    assert smoothing(torch.zeros(4), torch.zeros(4)).values.tolist() == [1.0] * 4


def test_zigzag_levels_blocks_and_sorting_does_not():
    energies = moment(64).diagonal()
    dealt, ordered = (made.apply(energies).view(8, 8).sum(1) for made in (zigzag(energies, 8), by_magnitude(energies)))
    assert dealt.max() / dealt.min() < ordered.max() / ordered.min() / 3
    assert (by_magnitude(energies).apply(energies).diff() <= 0).all()
    with pytest.raises(InputError, match="do not divide"):
        zigzag(energies, 7)


def test_duquant_spreads_peaks_further_than_one_rotation():
    energies = moment(64)
    peaks = []
    for made in (None, duquant_block(energies, 8), duquant(energies, 8)):
        turned = energies if made is None else made.apply(made.apply(energies, 0), 1)
        peaks.append(float(turned.diagonal().max()))
    assert peaks[0] > peaks[1] > peaks[2]


def test_a_kronecker_product_of_moments_is_flattened_exactly():
    left, right, read = moment(4), moment(8, 1), torch.eye(32, dtype=torch.float64)
    whole = torch.kron(left, right)
    made = kronecker(whole)
    turned = made.apply(made.apply(whole, 0), 1)
    torch.testing.assert_close(turned.diagonal(), turned.diagonal().mean().expand(32))
    assert made.orthogonal
    both = kronecker(whole, read)
    x, w = both.apply(both.apply(whole, 0), 1), both.dual().apply(both.dual().apply(read, 0), 1)
    torch.testing.assert_close(x / x.trace(), w / w.trace(), rtol=1e-2, atol=1e-4)  # up to damping
    assert kronecker_factors(32) == (4, 8)
    assert kronecker_factors(23) is None
    with pytest.raises(InputError, match="no product of two orders"):
        kronecker(moment(23))


def test_wush_needs_moments_alone():
    weight = torch.randn(40, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    blocks = torch.stack([moment(16)[i : i + 8, i : i + 8] for i in (0, 8)])
    grams = torch.stack([weight[:, i : i + 8].T @ weight[:, i : i + 8] / 40 for i in (0, 8)])
    torch.testing.assert_close(wush_of_moments(blocks, grams).matrix(), wush(moment(16), weight, 8).matrix())


@pytest.mark.parametrize("form", ["dct", "haar", "dft"])
@pytest.mark.parametrize("size", [1, 2, 7, 12, 64])
def test_signals_keep_lengths_and_gather_what_is_smooth(form, size):
    made = Signal(size, form)
    torch.testing.assert_close(made.matrix() @ made.matrix().T, torch.eye(size, dtype=torch.float64))
    torch.testing.assert_close(made.inverse().apply(made.apply(moment(size)[0])), moment(size)[0])
    assert from_json(made.transpose().to_json()).matrix().equal(made.matrix().T)
    means = made.apply(torch.ones(size, dtype=torch.float64))
    assert int((means.abs() > 1e-9).sum()) == (size // (size & -size) if form == "haar" else 1)


def test_another_signal_is_refused():
    with pytest.raises(InputError, match="none of dct, haar, dft"):
        Signal(8, "sine")


def test_moments_are_matched_by_the_transform_of_their_group():
    """Cosines for what changes slowly, Walsh functions for invariance under XOR, Fourier's under symmetric shifts."""
    size, rng = 32, np.random.default_rng(0)
    i = np.arange(size)
    walks = 0.995 ** np.abs(i[:, None] - i)
    values = rng.uniform(-1, 1, size)
    xor = values[i[:, None] ^ i] + 8 * np.eye(size)
    even = values[np.minimum(i, size - i)]
    shifts = even[(i[:, None] - i) % size] + 8 * np.eye(size)
    for moments, wanted, most in ((walks, "dct", 0.1), (xor, None, 1e-12), (shifts, "dft", 1e-12)):
        found = matched(torch.from_numpy(moments)[None])
        first = found.parts[0]
        assert isinstance(first, Hadamard) if wanted is None else first.form == wanted
        assert leakage(torch.from_numpy(moments)[None], first) < most
        assert found.orthogonal
    one, two = (matched(torch.from_numpy(np.stack([xor] * count))).matrix() for count in (1, 2))
    torch.testing.assert_close(two, torch.block_diag(one, one))
    assert matched(torch.eye(7, dtype=torch.float64)[None]) is None
