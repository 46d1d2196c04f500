"""Finite fields GF(p^k), as far as Paley's constructions need them: subtraction and the quadratic character.

An element is an integer below ``q = p^k`` whose digits in base ``p`` are the coefficients of a polynomial.
"""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np

__all__ = ["differences", "prime_power", "quadratic_character"]


@cache
def prime_power(q: int) -> tuple[int, int] | None:
    """``(p, k)`` with ``p`` prime and ``p^k == q``, or None if there are none."""
    if q < 2:
        return None
    p = next((d for d in range(2, int(q**0.5) + 1) if q % d == 0), q)
    k, rest = 0, q
    while rest % p == 0:
        rest, k = rest // p, k + 1
    return (p, k) if rest == 1 else None


def _orbit(p: int, tail: tuple[int, ...]) -> list[int]:
    """The powers 1, x, x², … modulo ``x^k - (tail[0] + tail[1] x + …)``, until they come back to 1 or die."""
    k = len(tail)
    one = (1,) + (0,) * (k - 1)
    powers, element = [], one
    while True:
        powers.append(sum(c * p**i for i, c in enumerate(element)))
        carry = element[-1]
        element = tuple((low + carry * t) % p for low, t in zip((0, *element[:-1]), tail, strict=True))
        if element == one or not any(element) or len(powers) >= p**k:
            return powers


@cache
def _primitive_powers(p: int, k: int) -> list[int]:
    """The powers of a generator of the multiplicative group of GF(p^k), by the first primitive polynomial."""
    for tail in itertools.product(range(p), repeat=k):
        if tail[0] and len(set(powers := _orbit(p, tail))) == p**k - 1:
            return powers
    raise AssertionError(f"GF({p}^{k}) has a primitive polynomial")


@cache
def quadratic_character(q: int) -> np.ndarray:
    """``chi[a]`` = 1 for a non-zero square of GF(q), -1 for a non-square, 0 for 0; int8 ``[q]``, q odd."""
    p, k = prime_power(q) or (0, 0)
    chi = np.full(q, -1, dtype=np.int8)
    chi[0] = 0
    if k == 1:
        chi[np.arange(1, q, dtype=np.int64) ** 2 % q] = 1
    else:
        chi[_primitive_powers(p, k)[::2]] = 1
    return chi


def differences(q: int) -> np.ndarray:
    """``d[a, b] = a - b`` in GF(q), int32 ``[q, q]``."""
    p, k = prime_power(q) or (0, 0)
    elements = np.arange(q, dtype=np.int32)
    result = np.zeros((q, q), dtype=np.int32)
    for digit in range(k):
        coefficient = elements // p**digit % p
        result += (coefficient[:, None] - coefficient[None, :]) % p * p**digit
    return result
