"""How far a second moment can be trusted: as far as so many independent rows, and no further."""

from __future__ import annotations

import pytest
import torch

from qcompile.statistics.second_moment import SecondMoment, shrinkage

SIZE = 48


def summed(parts: list[torch.Tensor]) -> SecondMoment:
    moment = SecondMoment()
    for part in parts:
        moment.add(part)
    return moment


def texts(count: int, length: int, alike: float, seed: int) -> list[torch.Tensor]:
    """Rows of texts, of which a part is common to a whole text."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 2, SIZE)
    own, common = (torch.randn(count, n, SIZE, generator=generator) for n in (length, 1))
    return list(((1 - alike) ** 0.5 * own + alike**0.5 * common) @ mix)


def test_independent_rows_count_fully_and_rows_of_a_text_hardly():
    free, tied = (summed(texts(64, 16, alike, 1)).effective for alike in (0.0, 0.9))
    assert free == pytest.approx(1024, rel=0.15)
    assert 50 < tied < 200


def test_one_text_is_no_evidence():
    moment = summed(texts(1, 500, 0.0, 2))
    assert moment.effective == 0
    assert shrinkage(moment.matrix, moment.effective) == 1


@pytest.mark.parametrize("alike", [0.0, 0.9])
@pytest.mark.parametrize("count", [4, 16, 256])
def test_the_shrunk_moment_is_about_the_best_of_its_kind(count, alike):
    """Among mixtures with a multiple of the identity, by distance from the moment of very many texts."""
    true, eye = summed(texts(20_000, 4, alike, 3)).matrix, torch.eye(SIZE, dtype=torch.float64)
    regret = []
    for seed in range(8):
        learned = summed(texts(count, 16, alike, 10 + seed))
        matrix = learned.matrix

        def distance(rho: float, matrix: torch.Tensor = matrix) -> float:
            mean = matrix.diagonal().mean()
            return float(((1 - rho) * matrix + rho * mean * eye - true).norm())

        best = min(distance(i / 50) for i in range(51))
        regret.append(distance(shrinkage(matrix, learned.effective)) / best)
    assert sum(regret) / len(regret) < 1.1
