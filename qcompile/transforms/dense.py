"""Transforms without further structure: one matrix, a matrix per block, and a seeded random rotation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar, Self

import numpy as np
import torch

from qcompile.errors import InputError
from qcompile.threads import by_part
from qcompile.transforms.fields import StepTransform, as_tensor, freeze, join
from qcompile.transforms.freedom import Freedom
from qcompile.transforms.steps import Step

__all__ = ["BlockDense", "Dense", "RandomOrthogonal", "classify", "in_half"]

_TOLERANCE = 1e-10  # on each entry of MᵀM - I and of M·1 - 1


def classify(matrices: torch.Tensor) -> Freedom:
    """The smallest named group that holds all of ``matrices`` (float64 ``[count, n, n]``)."""
    n = matrices.shape[-1]
    identity = torch.eye(n, dtype=matrices.dtype)
    if ((matrices != 0).sum(-1) == 1).all() and ((matrices != 0).sum(-2) == 1).all():
        return _classify_monomial(matrices, identity)
    if (matrices.mT @ matrices - identity).abs().max() > _TOLERANCE:
        return Freedom.GENERAL
    fixes_ones = (matrices.sum(-1) - 1).abs().max() <= _TOLERANCE
    return Freedom.ORTHOGONAL_ONES if fixes_ones else Freedom.ORTHOGONAL


def _classify_monomial(matrices: torch.Tensor, identity: torch.Tensor) -> Freedom:
    values = matrices[matrices != 0]
    moved = Freedom.NONE if not matrices[:, identity == 0].any() else Freedom.PERMUTATION
    signed = Freedom.SIGNS if (values < 0).any() else Freedom.NONE
    scaled = Freedom.POSITIVE_DIAGONAL if (values.abs() != 1).any() else Freedom.NONE
    return join((moved, signed, scaled))


def _inverse(matrices: torch.Tensor) -> torch.Tensor:
    """The inverse with one step of Newton's iteration, which wins back what elimination lost."""
    inverse, info = by_part(torch.linalg.inv_ex, matrices) if matrices.ndim == 3 else torch.linalg.inv_ex(matrices)
    if info.any() or not torch.isfinite(inverse).all():
        raise InputError("a transform must be invertible, and this matrix is singular")
    refined = inverse + inverse @ (torch.eye(matrices.shape[-1], dtype=matrices.dtype) - matrices @ inverse)
    return refined


@dataclass(frozen=True, eq=False)
class _Matrices(StepTransform):
    """The common part of ``Dense`` and ``BlockDense``: the field ``matrices`` and everything computed from it."""

    matrices: torch.Tensor

    @cached_property
    def group(self) -> Freedom:
        return classify(self.matrices.view(-1, *self.matrices.shape[-2:]))

    def inverse(self) -> Self:
        return self.transpose() if self.orthogonal else self._inverted

    @cached_property
    def _inverted(self) -> Self:
        return type(self)(_inverse(self.matrices))

    def dual(self) -> Self:
        return self if self.orthogonal else self._dual

    @cached_property
    def _dual(self) -> Self:
        """Found once, for every weight that is read in the basis."""
        return self.inverse().transpose()

    def transpose(self) -> Self:
        return type(self)(self.matrices.mT)

    @property
    def flops(self) -> int:
        return 2 * self.matrices.numel()

    def factors(self) -> list[Step]:
        """One step; its matrix is the whole ``[count, b, b]`` stack for ``BlockDense``."""
        outer = self.matrices.shape[0] if self.matrices.ndim == 3 else 1
        return [(outer, 1, self.matrices)]


@dataclass(frozen=True, eq=False)
class Dense(_Matrices):
    """Any invertible matrix, kept in float64.

    Args:
        matrices: ``[size, size]``.

    Raises:
        InputError: if it is not square or not finite; ``inverse`` raises it if it is singular.
    """

    kind: ClassVar[str] = "dense"

    def __post_init__(self) -> None:
        freeze(self, matrices=as_tensor(self.matrices))
        if self.matrices.ndim != 2 or self.matrices.shape[0] != self.matrices.shape[1]:
            raise InputError(f"a dense transform needs a square matrix, not shape {list(self.matrices.shape)}")

    @property
    def size(self) -> int:
        return self.matrices.shape[0]


@dataclass(frozen=True, eq=False)
class BlockDense(_Matrices):
    """A block-diagonal matrix with a block of its own at every place; applies by batched products.

    Args:
        matrices: ``[count, b, b]``; the size is ``count · b``.

    Raises:
        InputError: as for ``Dense``.
    """

    kind: ClassVar[str] = "block-dense"

    def __post_init__(self) -> None:
        freeze(self, matrices=as_tensor(self.matrices))
        if self.matrices.ndim != 3 or self.matrices.shape[1] != self.matrices.shape[2]:
            raise InputError(f"blocks must have shape [count, b, b], not {list(self.matrices.shape)}")

    @property
    def size(self) -> int:
        return self.matrices.shape[0] * self.matrices.shape[1]


#: Largest entries of blocks that float16 holds as well as it can, with room for the others below.
_HALF = (2.0**-8, 2.0**15)


def in_half(transform: BlockDense) -> BlockDense:
    """The nearest transform with entries of float16, which takes half the bytes; where a block is out of range, itself.

    Its inverse is that of these entries, so that it changes no function.
    """
    largest = transform.matrices.abs().amax((-1, -2))
    if not ((largest >= _HALF[0]) & (largest <= _HALF[1])).all():
        return transform
    return BlockDense(transform.matrices.half().double())


@dataclass(frozen=True, eq=False)
class RandomOrthogonal(StepTransform):
    """A rotation drawn from the Haar measure: the Q of a seeded Gaussian matrix, in float64."""

    kind: ClassVar[str] = "random-orthogonal"
    size: int
    seed: int
    transposed: bool = False

    @property
    def group(self) -> Freedom:
        return Freedom.ORTHOGONAL

    def transpose(self) -> RandomOrthogonal:
        return dataclasses.replace(self, transposed=not self.transposed)

    def inverse(self) -> RandomOrthogonal:
        return self.transpose()

    @property
    def flops(self) -> int:
        return 2 * self.size**2

    def factors(self) -> list[Step]:
        matrix = _haar(self.size, self.seed)
        return [(1, 1, matrix.T.contiguous() if self.transposed else matrix)]


@lru_cache(maxsize=4)
def _haar(size: int, seed: int) -> torch.Tensor:
    normal = np.random.Generator(np.random.PCG64(seed)).standard_normal((size, size))
    q, r = torch.linalg.qr(torch.from_numpy(normal))
    return (q * torch.sign(torch.diagonal(r))).contiguous()  # signs of R fixed, or Q is not Haar (Mezzadri, 2007)
