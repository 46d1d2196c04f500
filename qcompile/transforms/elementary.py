"""Transforms that cost next to nothing: identity, diagonal, permutation, Householder reflection, Givens rotation."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from qcompile.errors import InputError
from qcompile.transforms.fields import StepTransform, as_tensor, freeze
from qcompile.transforms.freedom import Freedom
from qcompile.transforms.steps import Step, check_axis

__all__ = ["Diagonal", "Givens", "Householder", "Identity", "Permutation"]


@dataclass(frozen=True, eq=False)
class Identity(StepTransform):
    """The identity of a given size; ``apply`` returns its argument."""

    kind: ClassVar[str] = "identity"
    size: int

    @property
    def group(self) -> Freedom:
        return Freedom.NONE

    def apply(self, x: torch.Tensor, axis: int = -1) -> torch.Tensor:
        check_axis(x, self.size, axis, self.kind)
        return x

    def inverse(self) -> Identity:
        return self

    def transpose(self) -> Identity:
        return self

    @property
    def flops(self) -> int:
        return 0

    def factors(self) -> list[Step]:
        return []


@dataclass(frozen=True, eq=False)
class Diagonal(StepTransform):
    """``y_i = values_i x_i``.

    Args:
        values: float64 ``[size]`` (anything that converts), none of them zero.

    Raises:
        InputError: if a value is zero or not finite.
    """

    kind: ClassVar[str] = "diagonal"
    values: torch.Tensor

    def __post_init__(self) -> None:
        freeze(self, values=as_tensor(self.values).reshape(-1))
        if (self.values == 0).any():
            raise InputError("a diagonal transform with a zero has no inverse")

    @property
    def size(self) -> int:
        return self.values.numel()

    @cached_property
    def group(self) -> Freedom:
        if (self.values == 1).all():
            return Freedom.NONE
        if (self.values.abs() == 1).all():
            return Freedom.SIGNS
        return Freedom.POSITIVE_DIAGONAL if (self.values > 0).all() else Freedom.DIAGONAL

    def inverse(self) -> Diagonal:
        return self if self.orthogonal else Diagonal(1 / self.values)

    def transpose(self) -> Diagonal:
        return self

    @property
    def flops(self) -> int:
        return self.size

    def factors(self) -> list[Step]:
        return [(1, 1, self.values)]


@dataclass(frozen=True, eq=False)
class Permutation(StepTransform):
    """``y_i = x_{indices_i}``.

    Args:
        indices: int64 ``[size]`` (anything that converts), each of 0 … size - 1 once.

    Raises:
        InputError: if it is not a permutation.
    """

    kind: ClassVar[str] = "permutation"
    indices: torch.Tensor

    def __post_init__(self) -> None:
        freeze(self, indices=as_tensor(self.indices, torch.int64).reshape(-1))
        if not torch.equal(self.indices.sort().values, torch.arange(self.size)):
            raise InputError(f"not a permutation of 0 … {self.size - 1}")

    @property
    def size(self) -> int:
        return self.indices.numel()

    @property
    def group(self) -> Freedom:
        return Freedom.PERMUTATION

    def inverse(self) -> Permutation:
        return Permutation(torch.argsort(self.indices))

    def transpose(self) -> Permutation:
        return self.inverse()

    @property
    def flops(self) -> int:
        return 0

    def factors(self) -> list[Step]:
        return [(1, 1, self.indices)]


@dataclass(frozen=True, eq=False)
class Householder(StepTransform):
    """The reflection ``I - 2 v vᵀ / ‖v‖²``.

    Raises:
        InputError: if ``vector`` is zero or not finite.
    """

    kind: ClassVar[str] = "householder"
    vector: torch.Tensor

    def __post_init__(self) -> None:
        freeze(self, vector=as_tensor(self.vector).reshape(-1))
        if not self.vector.any():
            raise InputError("a Householder reflection needs a vector that is not zero")

    @property
    def size(self) -> int:
        return self.vector.numel()

    @property
    def group(self) -> Freedom:
        sums_to_zero = abs(self.vector.sum()) <= 1e-12 * self.vector.abs().sum()
        return Freedom.ORTHOGONAL_ONES if sums_to_zero else Freedom.ORTHOGONAL

    @property
    def stepwise(self) -> bool:
        return False

    def apply(self, x: torch.Tensor, axis: int = -1) -> torch.Tensor:
        axis = check_axis(x, self.size, axis, self.kind)
        work = x if x.dtype in (torch.float32, torch.float64) else x.float()
        v = (self.vector / self.vector.norm()).to(x.device, work.dtype)
        shape = [-1 if i == axis else 1 for i in range(x.ndim)]
        along = torch.tensordot(work, v, ([axis], [0])).unsqueeze(axis)
        return (work - 2 * along * v.view(shape)).to(x.dtype)

    def inverse(self) -> Householder:
        return self

    def transpose(self) -> Householder:
        return self

    @property
    def flops(self) -> int:
        return 4 * self.size

    def factors(self) -> list[Step]:
        return [(1, 1, self.matrix())]


@dataclass(frozen=True, eq=False)
class Givens(StepTransform):
    """The rotation by ``angle`` (radians) in the plane of two axes: ``first' = c·first - s·second``.

    Raises:
        InputError: if the axes are equal or outside ``0 … size - 1``.
    """

    kind: ClassVar[str] = "givens"
    size: int
    first: int
    second: int
    angle: float

    def __post_init__(self) -> None:
        low, high = sorted((self.first, self.second))
        if not 0 <= low < high < self.size:
            raise InputError(f"no plane ({self.first}, {self.second}) in {self.size} dimensions")

    @property
    def group(self) -> Freedom:
        return Freedom.ORTHOGONAL

    @property
    def stepwise(self) -> bool:
        return False

    def apply(self, x: torch.Tensor, axis: int = -1) -> torch.Tensor:
        axis = check_axis(x, self.size, axis, self.kind)
        c, s = math.cos(self.angle), math.sin(self.angle)
        pair = torch.tensor([self.first, self.second], device=x.device)
        a, b = x.index_select(axis, pair).unbind(axis)
        return x.index_copy(axis, pair, torch.stack((c * a - s * b, s * a + c * b), axis))

    def inverse(self) -> Givens:
        return dataclasses.replace(self, angle=-self.angle)

    def transpose(self) -> Givens:
        return self.inverse()

    @property
    def flops(self) -> int:
        return 6

    def factors(self) -> list[Step]:
        return [(1, 1, self.matrix())]
