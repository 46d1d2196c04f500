"""The (randomized) Hadamard transform of any order that can be constructed, in O(n log n)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, ClassVar

import numpy as np
import torch

from qcompile.errors import InputError
from qcompile.transforms.fields import StepTransform
from qcompile.transforms.freedom import Freedom
from qcompile.transforms.orders.orders import Variant, primitive_matrix, primitives
from qcompile.transforms.steps import Step, to_dtype

__all__ = ["Hadamard", "random_hadamard", "random_permutation", "random_signs"]

# Passing over the values once costs as much as this many multiply-adds per value; measured for torch on a CPU
# (4096 -> 16 x 16 x 16), estimated for graph runtimes, where every step is three nodes (4096 -> 64 x 64).
_TORCH_PASS = 48
_GRAPH_PASS = 200


def random_signs(size: int, seed: int) -> np.ndarray:
    """±1 from the raw bits of PCG64, the same on every machine and version: float64 ``[size]``."""
    words = np.random.PCG64(seed).random_raw((size + 63) // 64).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:size]
    return 1.0 - 2.0 * bits


def random_permutation(size: int, seed: int) -> np.ndarray:
    """A permutation from the raw words of PCG64 (their stable order): int64 ``[size]``."""
    return np.argsort(np.random.PCG64(seed).random_raw(size), kind="stable").astype(np.int64)


@dataclass(frozen=True, eq=False)
class Hadamard(StepTransform):
    """``T = H R / √n``, orthogonal, with ``R`` drawn from ``seed``; or its transpose ``Rᵀ Hᵀ / √n``.

    ``R`` is a diagonal of random signs. For the regular variant, whose unsigned matrix maps the ones vector onto
    itself, ``R`` is a random permutation instead, so that it still does. Without a seed there is no ``R``.

    Args:
        size: the order; ``orders.has_hadamard`` says which exist.
        seed: of ``R``, at least 0.
        variant: ``"default"``, or ``"regular"`` with constant row sums √n (n = m² with m a constructible order).
        transposed: whether this is the transpose.

    Raises:
        InputError: if no Hadamard matrix of that order and variant is known here.
    """

    kind: ClassVar[str] = "hadamard"
    size: int
    seed: int | None = None
    variant: Variant = "default"
    transposed: bool = False

    def __post_init__(self) -> None:
        if self.variant not in ("default", "regular"):
            raise InputError(f"Hadamard variant {self.variant!r} is neither 'default' nor 'regular'")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"the seed of a Hadamard transform must be at least 0, not {self.seed}")
        primitives(self.size, self.variant)
        if self.transposed and self.seed is None and _is_symmetric(self.size, self.variant):
            object.__setattr__(self, "transposed", False)

    @property
    def group(self) -> Freedom:
        """Orthogonal; fixing the ones vector if regular; trivial for one unsigned channel."""
        if self.size == 1:
            return Freedom.NONE if self.seed is None or self.variant == "regular" else Freedom.SIGNS
        return Freedom.ORTHOGONAL_ONES if self.variant == "regular" else Freedom.ORTHOGONAL

    def transpose(self) -> Hadamard:
        return dataclasses.replace(self, transposed=not self.transposed)

    def inverse(self) -> Hadamard:
        return self.transpose()

    @property
    def flops(self) -> int:
        """Dense bases of order K cost 2K per element, the Sylvester part log2 of its order, R one."""
        per_element = sum(1 if p == 2 else 2 * p for p in primitives(self.size, self.variant))
        return self.size * (per_element + (self.seed is not None and self.variant == "default"))

    def factors(self) -> list[Step]:
        """Few large matrices (at most 128 wide where the order allows): what a graph runs best."""
        return list(_steps(self, _GRAPH_PASS, torch.float64, torch.device("cpu")))

    def torch_steps(self, dtype: torch.dtype, device: torch.device) -> list[Step]:
        return list(_steps(self, _TORCH_PASS, dtype, device))

    def to_json(self) -> dict[str, Any]:
        """The fields; ``transposed`` where it is."""
        data = super().to_json()
        return data if self.transposed else {name: value for name, value in data.items() if name != "transposed"}


def random_hadamard(size: int, seed: int) -> Hadamard:
    """The randomized Hadamard transform of QuaRot: ``H · diag(signs) / √n``."""
    return Hadamard(size, seed)


@cache
def _is_symmetric(size: int, variant: Variant) -> bool:
    matrices = (primitive_matrix(p, variant) for p in set(primitives(size, variant)))
    return all((m == m.T).all() for m in matrices)


@cache
def _split(orders: tuple[int, ...], pass_cost: int) -> tuple[int, ...]:
    """How many consecutive primitives each factor takes, for the least ``Σ (width + pass_cost)``."""
    if not orders:
        return ()
    choices = [(take, *_split(orders[take:], pass_cost)) for take in range(1, len(orders) + 1)]
    return min(choices, key=lambda counts: (_work(orders, counts, pass_cost), len(counts)))


def _work(orders: tuple[int, ...], counts: tuple[int, ...], pass_cost: int) -> int:
    starts = np.cumsum((0, *counts))
    return sum(math.prod(orders[a:b]) + pass_cost for a, b in itertools.pairwise(starts))


@lru_cache(maxsize=256)
def _steps(h: Hadamard, pass_cost: int, dtype: torch.dtype, device: torch.device) -> tuple[Step, ...]:
    """The Kronecker factors, ±1 but for the last one run, which carries 1/√n."""
    orders = primitives(h.size, h.variant)
    steps: list[Step] = []
    outer, inner, start = 1, h.size, 0
    for count in _split(orders, pass_cost):
        matrix = np.ones((1, 1))
        for p in orders[start : start + count]:
            matrix = np.kron(matrix, primitive_matrix(p, h.variant))
        inner //= len(matrix)
        steps.append((outer, inner, torch.from_numpy(np.ascontiguousarray(matrix.T if h.transposed else matrix))))
        outer, start = outer * len(matrix), start + count
    return tuple(to_dtype(_randomized(_normalized(steps, h.size), h), dtype, device))


def _normalized(steps: list[Step], size: int) -> list[Step]:
    if not steps:
        return steps
    outer, inner, last = steps[-1]
    return [*steps[:-1], (outer, inner, last / math.sqrt(size))]


def _randomized(steps: list[Step], h: Hadamard) -> list[Step]:
    if h.seed is None:
        return steps
    if h.variant == "default":
        values = torch.from_numpy(random_signs(h.size, h.seed))
    else:
        order = random_permutation(h.size, h.seed)
        values = torch.from_numpy(np.argsort(order) if h.transposed else order)
    draw: Step = (1, 1, values)
    return [*steps, draw] if h.transposed else [draw, *steps]
