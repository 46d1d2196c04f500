"""Rotations that compete for an axis, by its size and by whether they fold into weights."""

from __future__ import annotations

import pytest

from qcompile.api import rotate
from qcompile.choice.candidates import orthogonal_candidates
from qcompile.targets.scheme import Scheme
from qcompile.transforms.freedom import Freedom

SCHEME = Scheme.parse("int4-g32")


@pytest.mark.parametrize("size", [23, 43, 61, 122])
def test_sizes_without_a_hadamard_matrix_rotate_offline_alone(size):
    for kind in ("auto", "hadamard"):
        offline = orthogonal_candidates(size, SCHEME, kind, 0, offline=True)
        assert list(offline)[-1] == "random-orthogonal"
        assert "random-orthogonal" not in orthogonal_candidates(size, SCHEME, kind, 0)
    assert "random-orthogonal" not in orthogonal_candidates(size, SCHEME, "block", 0, offline=True)
    assert "random-orthogonal" not in orthogonal_candidates(
        size, SCHEME, "hadamard", 0, Freedom.ORTHOGONAL_ONES, offline=True
    )


def test_others_have_structure():
    assert "random-orthogonal" not in orthogonal_candidates(64, SCHEME, "auto", 0, offline=True)


def test_a_space_of_a_prime_size_is_rotated(parse):
    model = parse("""g (float[n,61] x) => (float[n,61] y) <float[61,61] a, float[61,61] b>
        { h = MatMul(x, a)\n y = MatMul(h, b) }""")
    rotated = rotate(model)
    assert [transform.kind for transform in rotated.placement.offline.values()] == ["random-orthogonal"]
    assert 0 < rotated.equivalence.rel_l2 < 1e-5
