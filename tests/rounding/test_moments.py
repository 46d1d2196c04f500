"""What GPTQ makes of a weight fits the input that the quantized graph will give it."""

from __future__ import annotations

import pytest
import torch

from qcompile.formats import get_format, quantize
from qcompile.rounding.moments import InputMoments, input_moments, joined
from qcompile.statistics.collected import Statistics
from qcompile.transforms import Hadamard

FORMAT = get_format("int4-g32")


def drawn(rows: int = 4096, size: int = 64) -> torch.Tensor:
    """Correlated rows."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 16, generator=generator) @ torch.randn(16, size, generator=generator) + 0.1 * torch.randn(
        rows, size, generator=generator
    )


def moments(x: torch.Tensor, seen: torch.Tensor, crossed: bool) -> InputMoments:
    """From all rows but the last 256."""
    moment, cross = (part[:-256].double().T @ seen[:-256].double() / (len(x) - 256) for part in (seen, x))
    return InputMoments(moment, cross if crossed else None, x[-256:], seen[-256:], [64] * 4, len(x))


def test_weights_move_towards_what_undoes_earlier_losses():
    x, weight = drawn(), torch.randn(48, 64, generator=torch.Generator().manual_seed(1))
    seen = x * torch.linspace(0.8, 1.1, 64)  # a loss that a weight can undo
    errors = {}
    for crossed in (False, True):
        own = moments(x, seen, crossed)
        errors[crossed] = own.errors(weight, own.learn(weight, FORMAT).quantized).sum()
    assert errors[True] < 0.5 * errors[False]


def test_equal_inputs_move_nothing():
    x, weight = drawn(), torch.randn(48, 64, generator=torch.Generator().manual_seed(1))
    results = [moments(x, x, crossed).learn(weight, FORMAT).quantized for crossed in (False, True)]
    assert torch.equal(results[0].codes, results[1].codes)


def test_input_moments_from_statistics_are_in_the_basis_of_the_sites():
    x, turned = drawn(), Hadamard(64, 3)
    held_out = [x[-256:-56].numpy(), x[-56:].numpy()]
    statistics = Statistics((x.double().T @ x.double() / len(x)).numpy(), x[:8].numpy(), len(x), held_out)
    own = input_moments(statistics, turned)
    moved = turned.apply(x, -1)
    torch.testing.assert_close(own.moment, moved.double().T @ moved.double() / len(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own.seen, moved[-256:], rtol=1e-4, atol=1e-4)
    near = quantize(torch.eye(64), FORMAT)
    assert own.errors(torch.eye(64), near) == pytest.approx([0, 0], abs=1e-3)


@pytest.mark.parametrize(("rows", "scale", "reason"), [(5, 1.0, "5 independent"), (64, 0.0, "zero"), (64, 1.0, None)])
def test_what_teaches_nothing_is_said(rows, scale, reason):
    x = drawn(rows) * scale
    found = InputMoments(x.double().T @ x.double(), None, x, x, [rows], rows).unusable
    assert found is None if reason is None else reason in found


def test_the_input_of_several_sites_counts_each_sequence_once():
    x, y = drawn(), 2 * drawn(2048)
    parts = [moments(x, x, True), moments(y, y, False)]
    both = joined(parts)
    share = len(x) / (len(x) + len(y))
    want = share * parts[0].moment + (1 - share) * parts[1].moment
    torch.testing.assert_close(both.moment, want)
    torch.testing.assert_close(both.cross, want)
    assert both.lengths == [128] * 4
    torch.testing.assert_close(both.exact[:128], torch.cat([x[-256:-192], y[-256:-192]]))
    assert joined(parts[:1]) is parts[0]
