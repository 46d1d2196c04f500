"""Hadamard matrices of one primitive order each: Paley I and II, Goethals-Seidel, T-matrices times Williamson.

Every function returns an int8 matrix of ±1 with ``H Hᵀ = n I``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache, reduce

import numpy as np

from qcompile.transforms.orders.finite_field import differences, prime_power, quadratic_character
from qcompile.transforms.orders.sequences import GOETHALS_SEIDEL, T_SEQUENCES, TURYN_TYPE, WILLIAMSON

__all__ = ["bases", "construct_primitive", "construction", "regular_square"]


_LARGEST = 4096  # a dense factor beyond this would cost more than the transform can be worth


@cache
def construction(n: int) -> str | None:
    """The name of the construction used for order ``n``, None where there is none but a Kronecker product.

    Paley's constructions go on for ever; orders above 4096, which would be applied densely, are left out.
    """
    if n == 2:
        return "sylvester"
    if n % 4 or n > _LARGEST:
        return None
    if prime_power(n - 1):  # n - 1 ≡ 3 (mod 4)
        return "paley-1"
    if (n // 2 - 1) % 4 == 1 and prime_power(n // 2 - 1):
        return "paley-2"
    if n in GOETHALS_SEIDEL:
        return "goethals-seidel"
    if _t_times_williamson(n):
        return "t-matrices"
    return "miyamoto" if _is_miyamoto(n // 4) else None


def _is_miyamoto(q: int) -> bool:
    """Whether ``q ≡ 1 (mod 4)`` is a prime power and there is a matrix of order ``q - 1``."""
    return q % 4 == 1 and prime_power(q) is not None and bases(q - 1) is not None


def _t_times_williamson(n: int) -> tuple[int, int] | None:
    """``(t, w)`` with ``n = 4 t w``, the largest ``w``, or None."""
    for w in sorted(WILLIAMSON, reverse=True):
        t, rest = divmod(n, 4 * w)
        if not rest and (t in T_SEQUENCES or t in TURYN_TYPE):
            return t, w
    return None


@lru_cache(maxsize=64)
def construct_primitive(n: int) -> np.ndarray:
    """The Hadamard matrix of order ``n`` by ``construction(n)``: int8 ``[n, n]``.

    Paley, J. Math. Phys. 12 (1933); Goethals and Seidel, J. Austral. Math. Soc. 11 (1970); Cooper and Wallis,
    Bull. Austral. Math. Soc. 7 (1972); Miyamoto, J. Combin. Theory A 57 (1991).
    """
    builders = {"sylvester": _sylvester, "paley-1": _paley_1, "paley-2": _paley_2, "t-matrices": _t_matrices,
                "goethals-seidel": _goethals_seidel_order, "miyamoto": _miyamoto}  # fmt: skip
    name = construction(n)
    if name is None:
        raise ValueError(f"no construction of order {n}")
    return builders[name](n)


def _sylvester(n: int) -> np.ndarray:
    return np.array([[1, 1], [1, -1]], dtype=np.int8)


def _bordered(q: int, corner_sign: int) -> np.ndarray:
    """The conference matrix of order q + 1: symmetric for sign 1, skew for sign -1."""
    matrix = np.zeros((q + 1, q + 1), dtype=np.int8)
    matrix[0, 1:], matrix[1:, 0] = 1, corner_sign
    matrix[1:, 1:] = quadratic_character(q)[differences(q)]
    return matrix


def _paley_1(n: int) -> np.ndarray:
    return _bordered(n - 1, -1) + np.eye(n, dtype=np.int8)


def _paley_2(n: int) -> np.ndarray:
    q = n // 2 - 1
    conference, identity = _bordered(q, 1), np.eye(q + 1, dtype=np.int8)
    on, off = np.array([[1, 1], [1, -1]], np.int8), np.array([[1, -1], [-1, -1]], np.int8)
    return np.kron(conference, on) + np.kron(identity, off)


def _circulant(row: Sequence[int] | np.ndarray) -> np.ndarray:
    index = np.arange(len(row))
    return np.asarray(row, dtype=np.int8)[(index[None, :] - index[:, None]) % len(row)]


def _signs(text: str) -> list[int]:
    return ["-0+".index(c) - 1 for c in text]


def _goethals_seidel(blocks: Sequence[np.ndarray], flip: np.ndarray) -> np.ndarray:
    """The Goethals-Seidel array; ``flip`` is the permutation x -> -x of the group that the four blocks live on."""
    a, b, c, d = blocks
    br, cr, dr = b @ flip, c @ flip, d @ flip
    bt, ct, dt = b.T @ flip, c.T @ flip, d.T @ flip
    return np.block([[a, br, cr, dr], [-br, a, dt, -ct], [-cr, -dt, a, bt], [-dr, ct, -bt, a]]).astype(np.int8)


def _back_identity(n: int) -> np.ndarray:
    return np.eye(n, dtype=np.int8)[::-1]


def _goethals_seidel_order(n: int) -> np.ndarray:
    blocks = [_circulant(_signs(row)) for row in GOETHALS_SEIDEL[n]]
    return _goethals_seidel(blocks, _back_identity(n // 4))


def _t_sequences(t: int) -> list[np.ndarray]:
    """Four sequences of length ``t``: disjoint, filling, with autocorrelations that sum to zero.

    From Turyn-type X, Y, Z, W: ``(Z, 0)``, ``(0, W, 0)`` and ``(0, (X ± Y) / 2)`` (Turyn, 1974).
    """
    if t in T_SEQUENCES:
        return [np.array(_signs(row), dtype=np.int8) for row in T_SEQUENCES[t]]
    x, y, z, w = (np.array(_signs(row), dtype=np.int8) for row in TURYN_TYPE[t])
    m, rows = len(x), np.zeros((4, t), dtype=np.int8)
    rows[0, :m], rows[1, m : 2 * m - 1] = z, w
    rows[2, 2 * m - 1 :], rows[3, 2 * m - 1 :] = (x + y) // 2, (x - y) // 2
    return list(rows)


def _t_matrices(n: int) -> np.ndarray:
    found = _t_times_williamson(n)
    assert found is not None, f"no T-matrices of order {n}"
    length, order_of_blocks = found
    x = [_circulant(row) for row in _t_sequences(length)]
    w = [_circulant(_signs(row)) for row in WILLIAMSON[order_of_blocks]]
    order = ((0, 1, 2, 3), (-1, 0, 3, -2), (-2, -3, 0, 1), (-3, 2, -1, 0))
    sign = ((1, 1, 1, 1), (-1, 1, 1, -1), (-1, -1, 1, 1), (-1, 1, -1, 1))
    blocks = [
        reduce(np.add, (s * np.kron(t, w[abs(i)]) for s, t, i in zip(sg, x, idx, strict=True)))
        for sg, idx in zip(sign, order, strict=False)
    ]
    flip = np.kron(_back_identity(len(x[0])), _back_identity(len(w[0])))
    return _goethals_seidel(blocks, flip)


def _miyamoto(n: int) -> np.ndarray:
    """Order ``4 q`` from the squares and non-squares of GF(q) and a Hadamard matrix of order ``q - 1``.

    ``U`` and ``V`` are 4x4 arrays of blocks that never meet in one place; each pair becomes ``[[U + V, U - V], [U - V,
    U + V]]``, and a border of ones with signs makes the rows of different arrays orthogonal.
    """
    q = n // 4
    half, chi = (q - 1) // 2, quadratic_character(q)
    squares, others, table = np.flatnonzero(chi == 1), np.flatnonzero(chi == -1), chi[differences(q)]
    core = [[-table[np.ix_(squares, squares)], table[np.ix_(squares, others)]],
            [table[np.ix_(others, squares)], table[np.ix_(others, others)]]]  # fmt: skip
    k = _product(q - 1)
    k = np.block([[k[:half, :half], k[:half, half:]], [-k[half:, :half], k[half:, half:]]])
    u = np.kron(np.eye(2, dtype=np.int8), np.block(core))
    v = np.block([[np.eye(q - 1, dtype=np.int8), k], [k.T, np.eye(q - 1, dtype=np.int8)]])
    ones, sign = np.ones((1, q - 1), dtype=np.int8), np.array(_MIYAMOTO, dtype=np.int8)
    rows = []
    for i in range(4):
        line, column = [], []
        for j in range(4):
            part = np.s_[i * half : (i + 1) * half, j * half : (j + 1) * half]
            plus, minus = u[part] + v[part], u[part] - v[part]
            corner, above, left, block = sign[i, j]
            line += [corner * ones[:, :1], above * ones]
            column += [left * ones.T, block * np.block([[plus, minus], [minus, plus]])]
        rows += [line, column]
    return np.block(rows).astype(np.int8)


# The signs of corner, row above, column to the left and block, for each of the 4x4 pairs of arrays.
_MIYAMOTO = (
    ((1, -1, -1, 1), (1, 1, 1, 1), (1, 1, 1, 1), (1, 1, 1, 1)),
    ((-1, -1, -1, -1), (1, -1, -1, 1), (1, 1, 1, 1), (-1, -1, -1, -1)),
    ((-1, -1, -1, -1), (-1, -1, -1, -1), (1, -1, -1, 1), (1, 1, 1, 1)),
    ((-1, -1, -1, -1), (1, 1, 1, 1), (-1, -1, -1, -1), (1, -1, -1, 1)),
)


@lru_cache(maxsize=16)
def regular_square(n: int) -> np.ndarray:
    """A Hadamard matrix of order ``n²`` whose rows all sum to ``n``, from one of primitive order ``n``: int8.

    The rank-one matrices ``C_i = r_iᵀ r_i`` of the normalized rows annihilate each other; placed by a Latin
    square they make a Bush-type matrix (Kharaghani, 1985). ``n = 2`` gives the well-known regular order 4.
    """
    h = construct_primitive(n).astype(np.int8)
    h = h * h[:1]  # first row becomes all ones: C_0 = J, all other C_i sum to zero along rows
    projectors = h[:, :, None] * h[:, None, :]
    latin = (np.arange(n)[None, :] - np.arange(n)[:, None]) % n
    return projectors[latin].transpose(0, 2, 1, 3).reshape(n * n, n * n)


@cache
def bases(n: int) -> tuple[int, ...] | None:
    """Orders above 2 whose product, times a power of two, is ``n``; the least sum, then the fewest."""
    if n & (n - 1) == 0:
        return ()
    best: tuple[int, ...] | None = None
    for d in _divisors_of_order_4k(n):
        rest = bases(n // d) if construction(d) else None
        if rest is not None and (not rest or d >= rest[0]):
            best = min(filter(None, (best, (d, *rest))), key=lambda b: (_cost(n, b), len(b), b))
    return best


def _divisors_of_order_4k(n: int) -> list[int]:
    return [d for d in range(12, n + 1, 4) if n % d == 0 and d & (d - 1)]


def _cost(n: int, bases: tuple[int, ...]) -> int:
    """Multiply-adds per element: a dense base costs its order, each factor 2 costs 2."""
    return sum(bases) + 2 * int(math.log2(n // math.prod(bases)))


def _product(n: int) -> np.ndarray:
    """``H_n`` as the Kronecker product of its bases and of 2s: int8 ``[n, n]``."""
    own = bases(n)
    assert own is not None, f"no Hadamard matrix of order {n}"
    twos = (2,) * round(math.log2(n // math.prod(own)))
    return reduce(np.kron, map(construct_primitive, own + twos), np.ones((1, 1), dtype=np.int8))
