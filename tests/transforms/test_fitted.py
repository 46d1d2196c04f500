"""Transforms fitted to data do what their formulas promise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.errors import InputError
from qcompile.formats import fake_quantize, get_format
from qcompile.rounding.gptq import output_error
from qcompile.transforms import Transform, duquant_block, klt_hadamard, svd_lowrank, wush
from qcompile.transforms.fitted import diagonal_blocks, wush_of_moments


def moments(n: int, seed: int, samples: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples or 4 * n, n, dtype=torch.float64, generator=generator)
    x = x @ (torch.eye(n) + torch.randn(n, n, dtype=torch.float64, generator=generator) / n**0.5)
    x[:, n // 2] *= 20
    return x.T @ x / len(x)


def transformed(t: Transform, g: torch.Tensor) -> torch.Tensor:
    return t.apply(t.apply(g, 0), 1)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([4, 12, 16, 32]), st.integers(1, 3), st.integers(0, 99))
def test_klt_hadamard_levels_the_channels(size: int, count: int, seed: int) -> None:
    g = moments(size * count, seed)
    t = klt_hadamard(g, size)
    assert t.orthogonal
    assert t.inverse() == t.transpose()
    for block in diagonal_blocks(transformed(t, g), size):
        assert (block.diagonal() / block.diagonal().mean() - 1).abs().max() < 1e-9


def test_klt_hadamard_of_a_whole_axis() -> None:
    g = moments(64, 1)
    energies = transformed(klt_hadamard(g), g).diagonal()
    assert (energies / energies.mean() - 1).abs().max() < 1e-9


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([4, 12, 16, 32]), st.integers(1, 3), st.integers(0, 99), st.integers(1, 80))
def test_wush_makes_both_moments_equal_and_flat(size: int, count: int, seed: int, rows: int) -> None:
    n = size * count
    weight = torch.randn(rows, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    weight = torch.cat([weight, torch.eye(n)])  # full rank, so that no damping is needed
    g = moments(n, seed)
    t = wush(g, weight, size, damping=0.0)
    assert not t.orthogonal
    folded = t.dual().apply(weight, 1)
    activations = diagonal_blocks(transformed(t, g), size)
    weights = diagonal_blocks(folded.T @ folded / len(weight), size)
    for a, w in zip(activations, weights, strict=True):
        scale = a.diagonal().mean()
        assert (a - w).abs().max() < 1e-8 * scale
        assert (a.diagonal() / scale - 1).abs().max() < 1e-8


def test_wush_in_parts_is_flat_in_each_and_loses_most_in_the_first() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 64, 16, generator=generator, dtype=torch.float64) * torch.logspace(0, 2, 16) for _ in "xy")
    a, b = x.mT @ x, y.mT @ y
    t = wush_of_moments(a, b, damping=1e-12, parts=2).matrices
    made, met = t @ a @ t.mT, torch.linalg.inv(t).mT @ b @ torch.linalg.inv(t)
    torch.testing.assert_close(made, met, rtol=1e-6, atol=1e-6 * float(made.abs().max()))
    diagonal = made.diagonal(dim1=-2, dim2=-1)
    first, second = diagonal[:, :8], diagonal[:, 8:]
    torch.testing.assert_close(first, first[:, :1].expand_as(first), rtol=1e-6, atol=0)
    assert (first[:, 0] > 10 * second[:, 0]).all()
    scale = float(made.abs().max())
    assert made[:, :8, 8:].abs().max() < 1e-9 * scale


def test_wush_beats_no_transform_where_channels_are_loud() -> None:
    """Weights and activations in MXFP4, error of the output: the order of FACTS.md."""
    generator = torch.Generator().manual_seed(3)
    g, fmt = moments(64, 3), get_format("mxfp4")
    weight = torch.randn(48, 64, dtype=torch.float64, generator=generator)
    x = torch.randn(4096, 64, dtype=torch.float64, generator=generator) @ torch.linalg.cholesky(g).T

    def error(t: Transform | None) -> float:
        a, w = (x, weight) if t is None else (t.apply(x), t.dual().apply(weight, 1))
        y = fake_quantize(a, fmt).double() @ fake_quantize(w, fmt).double().T
        reference = x @ weight.T
        return float((y - reference).square().sum() / reference.square().sum())

    assert error(wush(g, weight, 32)) < 0.8 * error(None)
    assert error(wush(g, weight, 32)) < error(klt_hadamard(g, 32))


def test_wush_survives_dead_channels_and_thin_weights() -> None:
    g = moments(32, 5, samples=6)
    g[3], g[:, 3] = 0, 0
    t = wush(g, torch.randn(2, 32, generator=torch.Generator().manual_seed(0)), 16)
    identity = torch.eye(32, dtype=torch.float64)
    assert (t.inverse().matrix() @ t.matrix() - identity).abs().max() < 1e-8
    dead = torch.zeros(32, 32)
    assert torch.isfinite(wush(dead, torch.zeros(2, 32), 16).matrix()).all()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([8, 12, 16, 32, 10]), st.integers(1, 3), st.integers(0, 99))
def test_duquant_lowers_the_largest_energy(size: int, count: int, seed: int) -> None:
    g = moments(size * count, seed)
    t = duquant_block(g, size)
    assert t.orthogonal
    assert t.size == size * count
    before, after = diagonal_blocks(g, size), diagonal_blocks(transformed(t, g), size)
    for b, a in zip(before, after, strict=True):
        assert a.diagonal().max() <= b.diagonal().max() * (1 + 1e-12)
        assert a.diagonal().sum() == pytest.approx(float(b.diagonal().sum()))
    loud = size * count // 2 // size
    assert after[loud].diagonal().max() < 0.5 * before[loud].diagonal().max()


def test_duquant_spreads_one_loud_channel_evenly_at_the_first_step() -> None:
    energies = torch.zeros(2, 16)
    energies[0, 5], energies[1, 0] = 16.0, 32.0
    t = duquant_block(energies.view(-1), 16, steps=1)
    after = transformed(t, torch.diag(energies.view(-1)).double()).diagonal()
    assert torch.allclose(after, torch.tensor([1.0, 2.0], dtype=torch.float64).repeat_interleave(16), atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: klt_hadamard(torch.eye(12), 6), "no Hadamard matrix of order 6"),
        (lambda: klt_hadamard(torch.eye(12), 8), "do not divide"),
        (lambda: klt_hadamard(torch.ones(3, 4)), "shape"),
        (lambda: klt_hadamard(torch.full((4, 4), torch.nan)), "NaN"),
        (lambda: wush(torch.eye(8), torch.ones(3, 9), 4), "does not read"),
        (lambda: wush(-torch.eye(8), torch.ones(3, 8), 4), "not positive semidefinite"),
        (lambda: svd_lowrank(torch.ones(3, 4), 5, lambda w: w), "low rank 5"),
    ],
)
def test_mistakes_are_named(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()  # type: ignore[operator]


def test_low_rank_branch_takes_what_the_format_cannot() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(64, 96, generator=generator)
    weight += 12 * torch.randn(64, 4, generator=generator) @ torch.randn(4, 96, generator=generator) / 4
    fmt = get_format("int4-g32")
    alone = output_error(weight, fake_quantize(weight, fmt), torch.eye(96))
    first = svd_lowrank(weight, 8, lambda w: fake_quantize(w, fmt), iterations=1)
    best = svd_lowrank(weight, 8, lambda w: fake_quantize(w, fmt), iterations=8)
    assert best.error <= first.error < 0.3 * alone
    assert best.left.shape == (64, 8)
    assert best.right.shape == (8, 96)
    rebuilt = best.left @ best.right + best.residual
    assert float((weight - rebuilt).square().sum() / weight.square().sum()) == pytest.approx(best.error, rel=1e-3)
    assert svd_lowrank(weight, 0, lambda w: fake_quantize(w, fmt)).error == pytest.approx(alone, rel=1e-5)
