"""Hadamard matrices: every order, in integers; the transform: fast, exact, deterministic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.errors import InputError
from qcompile.transforms import Hadamard, from_json, hadamard_matrix, hadamard_orders, has_hadamard, random_hadamard
from qcompile.transforms.freedom import Freedom
from qcompile.transforms.hadamard import random_permutation, random_signs
from qcompile.transforms.orders.constructions import construct_primitive, construction
from qcompile.transforms.orders.finite_field import differences, prime_power, quadratic_character
from qcompile.transforms.orders.orders import primitives

VALUES = json.loads((Path(__file__).parents[1] / "data" / "values.json").read_text())
# Hidden, intermediate, head and projection sizes of common models.
COMMON = [1600, 4544, 4864, 5632, 9728, 18944, 25600, 29568]  # widths that QuaRot's table rejects
SIZES = [
    64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 448, 512, 576, 640, 704, 720, 768, 832, 896, 960, 1024, 1152, 1280,
    1408, 1472, 1536, 1664, 1792, 1920, 2048, 2112, 2304, 2432, 2560, 2688, 2816, 2880, 3072, 3200, 3328, 3456, 3584,
    3712, 3840, 4096, 4224, 4480, 4608, 4736, 5120, 5376, 5440, 5472, 5504, 5760, 6144, 6400, 6528, 6656, 6784, 6912,
    6944, 7168, 7424, 7680, 8064, 8192, 8448, 8640, 8704, 8960, 9216, 9472, 9984, 10240, 10752, 10944, 11008, 11264,
    11520, 12288, 12800, 13056, 13312, 13440, 13824, 14208, 14336, 14784, 15104, 15360, 16128, 16384, 16896, 17408,
    17920, 18176, 18432, 19200, 20480, 20992, 21504, 22016, 22528, 23040, 24576, 26624, 27648, 28416, 28672, 29184,
    30720, 32000, 32256, 32768,
]  # fmt: skip
DEAR = {4304: 1076, 13696: 428, 27392: 428}  # with their largest dense factor: blocks of the axis cost less


def is_hadamard(h: np.ndarray) -> bool:
    wide = h.astype(np.float32)  # exact for integers below 2^24, and fast
    return bool((np.abs(h) == 1).all() and np.array_equal(wide @ wide.T, len(h) * np.eye(len(h))))


#: Every order up to 512, those of T-matrices above it, and a few large ones.
ORDERS = [*hadamard_orders(512), *(n for n in range(516, 1600, 4) if construction(n) in ("t-matrices", "miyamoto"))]
ORDERS += [1600, 2028, 2064]


@pytest.mark.parametrize("low", range(0, len(ORDERS), 16))
def test_every_order_in_integers(low: int) -> None:
    wrong = [n for n in ORDERS[low : low + 16] if not is_hadamard(hadamard_matrix(n))]
    assert not wrong


@pytest.mark.slow
def test_every_primitive_order_in_integers() -> None:
    """All others are Kronecker products of these. By Freivalds' check: H (Hᵀ v) = n v for random integers v."""
    rng, wrong = np.random.default_rng(0), []
    for n in (n for n in range(4, 4097, 4) if construction(n)):
        h = construct_primitive.__wrapped__(n).astype(np.float64)
        v = rng.integers(-1000, 1000, (n, 4)).astype(np.float64)
        if (np.abs(h) != 1).any() or (h @ (h.T @ v) != n * v).any():
            wrong.append(n)
    assert not wrong


@pytest.mark.parametrize("n", hadamard_orders(1600, "regular"))
def test_regular_orders_have_constant_row_sums(n: int) -> None:
    h = hadamard_matrix(n, "regular")
    assert is_hadamard(h)
    assert (h.sum(1, dtype=np.int64) == round(n**0.5)).all()


def test_orders_of_the_reference_list() -> None:
    named = {int(n) for n, how in VALUES["hadamard_orders"].items() if how}
    named |= {int(n) for n in VALUES["hadamard_orders_special"]}
    assert named <= set(hadamard_orders(512))


def test_the_orders_that_are_not_reached_are_those_of_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "transforms.md").read_text()
    listed = text.split("<!-- orders that are not reached -->")[1].split("<!-- end -->")[0]
    missing = [n for n in range(4, 4097, 4) if not has_hadamard(n)]
    assert missing[0] == 372
    assert [int(n) for n in listed.replace(",", " ").split()] == missing


@pytest.mark.parametrize("n", COMMON + SIZES)
def test_widths_of_common_models_are_reachable_and_cheap(n: int) -> None:
    assert np.prod(primitives(n)) == n
    assert max(primitives(n)) <= 284
    assert Hadamard(n).flops < 600 * n


@pytest.mark.parametrize("n", DEAR)
def test_three_widths_of_common_models_are_reachable_and_dear(n: int) -> None:
    assert max(primitives(n)) == DEAR[n]
    assert is_hadamard(hadamard_matrix(DEAR[n]))


@pytest.mark.parametrize("n", [*COMMON, *SIZES, *DEAR])
def test_widths_of_common_models_transform_as_they_should(n: int) -> None:
    """In integers: H (Hᵀ v) = n v for random v, with the fast transform; and the JSON form brings it back."""
    t = Hadamard(n)
    v = torch.from_numpy(np.random.default_rng(n).integers(-9, 10, (2, n)).astype(np.float64))
    assert torch.equal((t.apply(t.transpose().apply(v) * n**0.5) * n**0.5).round(), n * v)
    seeded = Hadamard(n, 7)
    again = from_json(json.loads(json.dumps(seeded.to_json())))
    assert len(json.dumps(seeded.to_json())) < 100
    assert again == seeded
    assert torch.equal(again.apply(v), seeded.apply(v))


@pytest.mark.slow
@pytest.mark.parametrize("n", [n for n in (*COMMON, *SIZES, *DEAR) if n <= 4864])
def test_widths_of_common_models_in_integers(n: int) -> None:
    """The whole matrix; larger ones are Kronecker products of the same primitives, and are tested on vectors above."""
    assert is_hadamard(hadamard_matrix(n))


def test_orders_that_do_not_exist_are_refused() -> None:
    for n in (0, -4, 3, 6, 18, 372, 668, 32372):
        assert not has_hadamard(n)
        with pytest.raises(InputError, match="no Hadamard matrix of order"):
            Hadamard(n)
    with pytest.raises(InputError, match="no regular Hadamard matrix of order 8"):
        Hadamard(8, variant="regular")
    with pytest.raises(InputError, match="variant"):
        Hadamard(8, variant="odd")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="seed"):
        Hadamard(8, seed=-1)


@pytest.mark.parametrize("q", [3, 5, 9, 11, 25, 27, 49, 81, 121, 125, 243])
def test_finite_fields(q: int) -> None:
    chi, d = quadratic_character(q), differences(q)
    assert chi[0] == 0
    assert chi.sum() == 0
    assert (chi != 0).sum() == q - 1
    assert (np.sort(d, axis=1) == np.arange(q)).all()
    assert (np.diagonal(d) == 0).all()
    # Jacobsthal's matrix: Q Qᵀ = qI - J holds only if chi is multiplicative and d is the field's subtraction
    jacobsthal = chi[d].astype(int)
    assert np.array_equal(jacobsthal @ jacobsthal.T, q * np.eye(q, dtype=int) - 1)


def test_prime_powers() -> None:
    assert prime_power(27) == (3, 3)
    assert prime_power(29) == (29, 1)
    assert prime_power(1) is None
    assert prime_power(12) is None
    assert construction(92) == "goethals-seidel"
    assert construction(40) is None
    with pytest.raises(ValueError, match="order 40"):
        construct_primitive(40)


@pytest.mark.parametrize("n", [1, 2, 12, 64, 156, 172, 576, 1600])
@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("transposed", [False, True])
def test_apply_is_the_dense_matrix(n: int, seed: int | None, transposed: bool) -> None:
    h = hadamard_matrix(n).astype(np.float64) / n**0.5
    dense = torch.from_numpy(h * (1.0 if seed is None else random_signs(n, seed)))
    dense = dense.T if transposed else dense
    x = torch.randn(3, n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    expected = torch.einsum("ij,bjk->bik", dense, x)
    t = Hadamard(n, seed, transposed=transposed)
    assert (t.apply(x, 1) - expected).abs().max() < 1e-14 * max(n**0.5, 10)
    assert (t.apply(x.float(), 1) - expected).abs().max() < 3e-5
    assert (t.inverse().apply(t.apply(x, 1), 1) - x).abs().max() < 2e-14


@pytest.mark.parametrize("n", [*COMMON, 14336, 32768])
def test_large_orders_keep_the_norm_and_invert(n: int) -> None:
    x = torch.randn(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    t = random_hadamard(n, 3)
    y = t.apply(x)
    assert torch.allclose(y.norm(dim=1), x.norm(dim=1), rtol=1e-14)
    assert (t.transpose().apply(y) - x).abs().max() < 2e-14


@pytest.mark.parametrize("seed", [None, 5])
def test_regular_fixes_the_ones_vector(seed: int | None) -> None:
    for n in (4, 64, 144, 576):
        t = Hadamard(n, seed, "regular")
        assert t.group == Freedom.ORTHOGONAL_ONES
        for side in (t, t.transpose()):
            assert (side.apply(torch.ones(n, dtype=torch.float64)) - 1).abs().max() < 1e-13


def test_a_mean_piles_up_under_sylvester_and_not_under_regular() -> None:
    x = torch.ones(256)
    assert float(Hadamard(256).apply(x).abs().max()) == pytest.approx(16)
    assert float(Hadamard(256, variant="regular").apply(x).abs().max()) == pytest.approx(1)


def test_signs_are_frozen() -> None:
    """The stream of a seed is part of what a stored transform means: it may never change."""
    assert random_signs(16, 0).tolist() == FROZEN_SIGNS
    assert random_permutation(8, 0).tolist() == FROZEN_PERMUTATION
    assert random_signs(4096, 1).sum() != 4096
    assert abs(random_signs(4096, 1).mean()) < 0.06
    assert primitives(14336) == (28,) + (2,) * 9
    assert primitives(29568) == (44, 28, 12, 2)


FROZEN_SIGNS = [-1, -1, -1, -1, -1, 1, -1, 1, 1, -1, 1, 1, 1, 1, 1, -1]
FROZEN_PERMUTATION = [3, 2, 1, 6, 0, 7, 4, 5]


def test_transposes_without_signs_are_recognized() -> None:
    assert Hadamard(64).transpose() == Hadamard(64)  # symmetric
    assert Hadamard(12).transpose() != Hadamard(12)  # Paley I is skew
    assert Hadamard(64, 1).transpose() != Hadamard(64, 1)
    assert Hadamard(64, 1).transpose().transpose() == Hadamard(64, 1)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(hadamard_orders(160)), st.integers(0, 2**40), st.integers(0, 5), st.integers(0, 5), st.data())
def test_layouts_agree(n: int, seed: int, before: int, after: int, data: st.DataObject) -> None:
    """Any axis, strides, chunks, in place or not: the same numbers."""
    x = torch.randn(before, n, after, dtype=torch.float64)
    t = Hadamard(n, seed)
    expected = t.apply(x.movedim(1, -1).contiguous()).movedim(-1, 1)
    assert torch.allclose(t.apply(x, 1), expected, atol=1e-13)
    assert torch.allclose(t.apply(x.transpose(0, 2), -2), expected.transpose(0, 2), atol=1e-13)
    assert torch.allclose(t.apply_(x.clone(), 1), expected, atol=1e-13)
    assert x.shape == t.apply(x, 1).shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    x = (torch.randn(4, 512) * 1000).to(dtype)  # the unnormalized sums would overflow float16
    y = Hadamard(512, 1).apply(x)
    assert y.dtype == dtype
    assert torch.equal(y, Hadamard(512, 1).apply(x.float()).to(dtype))
