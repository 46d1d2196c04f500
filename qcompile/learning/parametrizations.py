"""Matrices of the groups that freedoms name, as functions of free parameters that gradients can move.

All begin at the identity: what is learned stands behind a closed form. Forward they are float32; the result is made of
the same parameters in float64, so that it is in its group to the last place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qcompile.transforms.freedom import Freedom

if TYPE_CHECKING:
    from qcompile.transforms import Transform

__all__ = ["Diagonal", "General", "Matrices", "Parametrization", "Rotation", "of_freedom"]

#: The widest axis whose rotation is one matrix: it is solved for at every step. Wider ones are learned in blocks.
WHOLE = 1024
BLOCK = 128


@dataclass(frozen=True)
class Matrices:
    """A block-diagonal matrix and its dual ``T⁻ᵀ`` at one step: ``[count, n, n]``, or ``[size]`` of a diagonal."""

    matrix: Tensor
    dual: Tensor

    def apply(self, x: Tensor, axis: int, *, dual: bool = False) -> Tensor:
        """``T x``, or ``T⁻ᵀ x``, along an axis."""
        matrix = self.dual if dual else self.matrix
        moved = x.movedim(axis, -1)
        if matrix.dim() == 1:
            return (moved * matrix).movedim(-1, axis)
        if len(matrix) == 1:
            return (moved @ matrix[0].T).movedim(-1, axis)
        parts = moved.unflatten(-1, (matrix.shape[0], matrix.shape[-1]))
        return torch.einsum("...cj,cij->...ci", parts, matrix).flatten(-2).movedim(-1, axis)


class Parametrization(ABC):
    """A matrix as a function of parameters."""

    @property
    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """The leaves that gradients move; zero is the identity."""

    @abstractmethod
    def matrices(self, dtype: torch.dtype = torch.float32) -> Matrices:
        """The matrix at the parameters' present values, differentiable."""

    def transform(self) -> Transform:
        """The same in float64, as a transform."""
        from qcompile.transforms import BlockDense, Dense
        from qcompile.transforms import Diagonal as DiagonalTransform

        with torch.no_grad():
            matrix = self.matrices(torch.float64).matrix.cpu()
        if matrix.dim() == 1:
            return DiagonalTransform(matrix)
        return Dense(matrix[0]) if len(matrix) == 1 else BlockDense(matrix)


class Rotation(Parametrization):
    """Orthogonal blocks by Cayley's formula, ``(I + A)⁻¹ (I - A)`` of skew-symmetric ``A``.

    Args:
        count, size: of the blocks.
        fixes_ones: whether ``T · 1 = 1``: ``A`` is then taken of vectors without a mean.
    """

    def __init__(self, count: int, size: int, *, fixes_ones: bool = False, device: str = "cpu") -> None:
        self._free = torch.zeros(count, size, size, device=device, requires_grad=True)
        self._fixes_ones = fixes_ones

    @property
    def parameters(self) -> list[Tensor]:
        return [self._free]

    def matrices(self, dtype: torch.dtype = torch.float32) -> Matrices:
        upper = self._free.to(dtype).triu(1)
        skew = upper - upper.mT
        if self._fixes_ones:
            skew = skew - skew.mean(-1, keepdim=True)
            skew = skew - skew.mean(-2, keepdim=True)
        identity = torch.eye(skew.shape[-1], dtype=dtype, device=skew.device)
        matrix = torch.linalg.solve(identity + skew, identity - skew)
        return Matrices(matrix, matrix)


class Diagonal(Parametrization):
    """Positive scales ``exp s``."""

    def __init__(self, size: int, device: str = "cpu") -> None:
        self._logarithm = torch.zeros(size, device=device, requires_grad=True)

    @property
    def parameters(self) -> list[Tensor]:
        return [self._logarithm]

    def matrices(self, dtype: torch.dtype = torch.float32) -> Matrices:
        logarithm = self._logarithm.to(dtype)
        return Matrices(logarithm.exp(), (-logarithm).exp())


class General(Parametrization):
    """Any invertible blocks of positive determinant: rotation, positive diagonal, rotation. The inverse is free."""

    def __init__(self, count: int, size: int, device: str = "cpu") -> None:
        self._left, self._right = (Rotation(count, size, device=device) for _ in range(2))
        self._logarithm = torch.zeros(count, size, device=device, requires_grad=True)

    @property
    def parameters(self) -> list[Tensor]:
        return [*self._left.parameters, *self._right.parameters, self._logarithm]

    def matrices(self, dtype: torch.dtype = torch.float32) -> Matrices:
        left, right = (part.matrices(dtype).matrix for part in (self._left, self._right))
        scales = self._logarithm.to(dtype).exp().unsqueeze(-1)
        return Matrices(left @ (scales * right), left @ (right / scales))


def of_freedom(freedom: Freedom, size: int, *, block: int | None = None, device: str = "cpu") -> Parametrization | None:
    """The largest parametrized group that a freedom holds; ``None`` where it holds none that is continuous.

    Args:
        block: the size of blocks; by default the whole axis, or blocks of 128 where that is wide.
    """
    own = block or (size if size <= WHOLE else max(b for b in range(1, BLOCK + 1) if size % b == 0))
    if own > 1 and Freedom.GENERAL in freedom:
        return General(size // own, own, device)
    if own > 1 and Freedom.ORTHOGONAL in freedom:
        return Rotation(size // own, own, device=device)
    if own > 2 and Freedom.ORTHOGONAL_ONES in freedom:
        return Rotation(size // own, own, fixes_ones=True, device=device)
    return Diagonal(size, device) if Freedom.POSITIVE_DIAGONAL in freedom else None
