"""Which orders have a Hadamard matrix here, and from which smaller ones it is built.

The choice is deterministic and part of what a serialized transform means: ``H_n`` is the Kronecker product of
``primitives(n)``, in that order.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import numpy as np

from qcompile.errors import InputError
from qcompile.transforms.orders.constructions import bases as known_bases
from qcompile.transforms.orders.constructions import construct_primitive, regular_square

__all__ = ["Variant", "hadamard_matrix", "hadamard_orders", "has_hadamard", "primitives"]

Variant = Literal["default", "regular"]

_REGULAR_4 = np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=np.int8)


@cache
def primitives(n: int, variant: Variant = "default") -> tuple[int, ...]:
    """Orders whose Kronecker product is ``H_n``: dense bases in decreasing order, then 2s (4s if regular).

    Raises:
        InputError: if no construction of order ``n`` is known here.
    """
    root = math.isqrt(max(n, 0))
    if variant == "regular" and root * root == n and n > 0:
        bases, small = known_bases(root), 4
        # a dense factor of order b²: beyond 64² it would cost more than the transform can be worth
        bases = None if bases is None or max(bases, default=0) > 64 else tuple(b * b for b in bases)
    elif variant == "default" and n > 0:
        bases, small = known_bases(n), 2
    else:
        bases, small = None, 0
    if bases is None:
        kind = "regular Hadamard" if variant == "regular" else "Hadamard"
        raise InputError(f"no {kind} matrix of order {n} is known: choose blocks of another size")
    return bases + (small,) * round(math.log(n // math.prod(bases), small))


def has_hadamard(n: int, variant: Variant = "default") -> bool:
    """Whether ``Hadamard(n, variant=variant)`` can be constructed."""
    try:
        return bool(primitives(n, variant)) or n == 1
    except InputError:
        return False


def hadamard_orders(limit: int = 32768, variant: Variant = "default") -> list[int]:
    """All orders up to ``limit`` that can be constructed, increasing."""
    step = 4 if variant == "default" else 1
    return [n for n in (1, 2, *range(4, limit + 1, step)) if n <= limit and has_hadamard(n, variant)]


def primitive_matrix(n: int, variant: Variant = "default") -> np.ndarray:
    """The ±1 matrix of one of the ``primitives`` of that variant: int8 ``[n, n]``."""
    if variant == "default":
        return construct_primitive(n)
    return _REGULAR_4 if n == 4 else regular_square(math.isqrt(n))


def hadamard_matrix(n: int, variant: Variant = "default") -> np.ndarray:
    """``H_n`` with entries ±1: int8 ``[n, n]``, ``H Hᵀ = n I``; rows sum to ``√n`` if regular."""
    result = np.ones((1, 1), dtype=np.int8)
    for order in primitives(n, variant):
        result = np.kron(result, primitive_matrix(order, variant))
    return result
