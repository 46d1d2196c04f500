"""Learned matrices stay in the group of their freedom, and the transform made of them is the same matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.learning.parametrizations import Diagonal, General, Parametrization, Rotation, of_freedom
from qcompile.transforms.freedom import Freedom

MADE = {
    "rotation": (lambda: Rotation(1, 12), Freedom.ORTHOGONAL),
    "blocks": (lambda: Rotation(3, 4), Freedom.ORTHOGONAL),
    "ones": (lambda: Rotation(2, 6, fixes_ones=True), Freedom.ORTHOGONAL_ONES),
    "general": (lambda: General(2, 6), Freedom.GENERAL),
    "diagonal": (lambda: Diagonal(12), Freedom.POSITIVE_DIAGONAL),
}


def moved(made: Parametrization, seed: int, size: float) -> Parametrization:
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in made.parameters:
            tensor.data = tensor.data.double()
            tensor.copy_(size * torch.randn(tensor.shape, generator=drawn, dtype=torch.float64))
    return made


@pytest.mark.parametrize("name", MADE)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), size=st.floats(0.0, 1.5))
def test_stays_in_its_group(name: str, seed: int, size: float) -> None:
    make, group = MADE[name]
    made = moved(make(), seed, size)
    assert made.transform().group in group
    matrix, x = made.transform().matrix(), torch.randn(5, 12, dtype=torch.float64)
    matrices = made.matrices(torch.float64)
    torch.testing.assert_close(matrices.apply(x, -1), x @ matrix.T)
    torch.testing.assert_close(matrices.apply(x.T, 0, dual=True), torch.linalg.inv(matrix).T @ x.T)


@pytest.mark.parametrize("name", MADE)
def test_begins_at_the_identity(name: str) -> None:
    torch.testing.assert_close(MADE[name][0]().transform().matrix(), torch.eye(12, dtype=torch.float64))


@pytest.mark.parametrize("name", MADE)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    made, weights = moved(MADE[name][0](), 1, 0.3), torch.randn(2, 12, dtype=torch.float64)

    def score() -> torch.Tensor:
        matrices = made.matrices(torch.float64)
        return (matrices.apply(weights, -1)[0] * matrices.apply(weights, -1, dual=True)[1].cos()).sum()

    score().backward()
    tensor = made.parameters[0]
    gradient, direction = tensor.grad, torch.randn(tensor.shape, dtype=torch.float64)
    with torch.no_grad():
        ends = []
        for step in (1e-5, -2e-5):
            tensor += step * direction
            ends.append(float(score()))
    assert float((gradient * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(
    ("freedom", "kind"),
    [(Freedom.GENERAL, General), (Freedom.ORTHOGONAL, Rotation), (Freedom.ORTHOGONAL_ONES, Rotation),
     (Freedom.POSITIVE_MONOMIAL, Diagonal), (Freedom.SIGNED_PERMUTATION, type(None))],
)  # fmt: skip
def test_freedom_names_the_group(freedom: Freedom, kind: type) -> None:
    found = of_freedom(freedom, 12)
    assert isinstance(found, kind)
    if found is not None:
        assert moved(found, 0, 0.5).transform().group in freedom
