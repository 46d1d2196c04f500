"""Transforms made of transforms: repeated blocks, Kronecker products, direct sums, compositions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from qcompile.errors import InputError
from qcompile.transforms.elementary import Identity
from qcompile.transforms.fields import StepTransform, freeze, join
from qcompile.transforms.freedom import Freedom
from qcompile.transforms.steps import Step, check_axis, embed, to_dtype
from qcompile.transforms.transform import Transform

__all__ = ["BlockDiagonal", "Compose", "DirectSum", "Kronecker", "compose"]


def _stepwise(t: Transform) -> bool:
    return isinstance(t, StepTransform) and t.stepwise


def _torch_steps(t: Transform, dtype: torch.dtype, device: torch.device) -> list[Step]:
    return t.torch_steps(dtype, device) if isinstance(t, StepTransform) else to_dtype(t.factors(), dtype, device)


@dataclass(frozen=True, eq=False)
class BlockDiagonal(StepTransform):
    """``I_count ⊗ block``: the same transform on every consecutive run of ``block.size`` channels."""

    kind: ClassVar[str] = "block"
    block: Transform
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"a block-diagonal transform needs at least one block, not {self.count}")

    @property
    def size(self) -> int:
        return self.block.size * self.count

    @property
    def group(self) -> Freedom:
        return self.block.group

    @property
    def stepwise(self) -> bool:
        return _stepwise(self.block)

    def apply(self, x: torch.Tensor, axis: int = -1) -> torch.Tensor:
        if self.stepwise:
            return super().apply(x, axis)
        axis = check_axis(x, self.size, axis, self.kind)
        return self.block.apply(x.unflatten(axis, (self.count, self.block.size)), axis + 1).flatten(axis, axis + 1)

    def inverse(self) -> BlockDiagonal:
        return BlockDiagonal(self.block.inverse(), self.count)

    def transpose(self) -> BlockDiagonal:
        return BlockDiagonal(self.block.transpose(), self.count)

    @property
    def flops(self) -> int:
        return self.count * self.block.flops

    def factors(self) -> list[Step]:
        return [embed(step, self.count, 1) for step in self.block.factors()]

    def torch_steps(self, dtype: torch.dtype, device: torch.device) -> list[Step]:
        return [embed(step, self.count, 1) for step in _torch_steps(self.block, dtype, device)]


@dataclass(frozen=True, eq=False)
class Kronecker(StepTransform):
    """``left ⊗ right``: ``right`` along the fast half of the axis, ``left`` along the slow one."""

    kind: ClassVar[str] = "kronecker"
    left: Transform
    right: Transform

    @property
    def size(self) -> int:
        return self.left.size * self.right.size

    @property
    def group(self) -> Freedom:
        return join((self.left.group, self.right.group))

    @property
    def stepwise(self) -> bool:
        return _stepwise(self.left) and _stepwise(self.right)

    def apply(self, x: torch.Tensor, axis: int = -1) -> torch.Tensor:
        if self.stepwise:
            return super().apply(x, axis)
        axis = check_axis(x, self.size, axis, self.kind)
        table = x.unflatten(axis, (self.left.size, self.right.size))
        return self.right.apply(self.left.apply(table, axis), axis + 1).flatten(axis, axis + 1)

    def inverse(self) -> Kronecker:
        return Kronecker(self.left.inverse(), self.right.inverse())

    def transpose(self) -> Kronecker:
        return Kronecker(self.left.transpose(), self.right.transpose())

    @property
    def flops(self) -> int:
        return self.left.size * self.right.flops + self.right.size * self.left.flops

    def factors(self) -> list[Step]:
        return self._embed(self.left.factors(), self.right.factors())

    def torch_steps(self, dtype: torch.dtype, device: torch.device) -> list[Step]:
        return self._embed(_torch_steps(self.left, dtype, device), _torch_steps(self.right, dtype, device))

    def _embed(self, left: Sequence[Step], right: Sequence[Step]) -> list[Step]:
        slow = [embed(step, 1, self.right.size) for step in left]
        return slow + [embed(step, self.left.size, 1) for step in right]


@dataclass(frozen=True, eq=False)
class DirectSum(StepTransform):
    """Different transforms side by side on consecutive pieces of the axis."""

    kind: ClassVar[str] = "direct-sum"
    parts: tuple[Transform, ...]

    def __post_init__(self) -> None:
        freeze(self, parts=tuple(self.parts))
        if not self.parts:
            raise InputError("a direct sum needs at least one part")

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def group(self) -> Freedom:
        return join(part.group for part in self.parts)

    @property
    def stepwise(self) -> bool:
        return False

    def apply(self, x: torch.Tensor, axis: int = -1) -> torch.Tensor:
        axis = check_axis(x, self.size, axis, self.kind)
        pieces = x.split([part.size for part in self.parts], axis)
        return torch.cat([part.apply(piece, axis) for part, piece in zip(self.parts, pieces, strict=True)], axis)

    def inverse(self) -> DirectSum:
        return DirectSum(tuple(part.inverse() for part in self.parts))

    def transpose(self) -> DirectSum:
        return DirectSum(tuple(part.transpose() for part in self.parts))

    @property
    def flops(self) -> int:
        return sum(part.flops for part in self.parts)

    def factors(self) -> list[Step]:
        """One step: the stack of blocks if they are all of one size, else the dense matrix."""
        if len({part.size for part in self.parts}) == 1:
            return [(len(self.parts), 1, torch.stack([part.matrix() for part in self.parts]))]
        return [(1, 1, self.matrix())]


@dataclass(frozen=True, eq=False)
class Compose(StepTransform):
    """Transforms one after the other, the first part applied first: ``T = parts[-1] · … · parts[0]``."""

    kind: ClassVar[str] = "compose"
    parts: tuple[Transform, ...]

    def __post_init__(self) -> None:
        freeze(self, parts=tuple(self.parts))
        if len({part.size for part in self.parts}) != 1:
            raise InputError(f"cannot compose transforms of sizes {[part.size for part in self.parts]}")

    @property
    def size(self) -> int:
        return self.parts[0].size

    @property
    def group(self) -> Freedom:
        return join(part.group for part in self.parts)

    @property
    def stepwise(self) -> bool:
        return False

    def apply(self, x: torch.Tensor, axis: int = -1) -> torch.Tensor:
        for part in self.parts:
            x = part.apply(x, axis)
        return x

    def inverse(self) -> Compose:
        return Compose(tuple(part.inverse() for part in reversed(self.parts)))

    def dual(self) -> Transform:
        return self if self.orthogonal else Compose(tuple(part.dual() for part in self.parts))  # no rotation is copied

    def transpose(self) -> Compose:
        return Compose(tuple(part.transpose() for part in reversed(self.parts)))

    @property
    def flops(self) -> int:
        return sum(part.flops for part in self.parts)

    def factors(self) -> list[Step]:
        return [step for part in self.parts for step in part.factors()]

    def simplified(self) -> Transform:
        """The same transform without identities, nested compositions and adjacent inverses."""
        stack: list[Transform] = []
        for part in _flattened(self):
            if stack and stack[-1] == part.inverse():
                stack.pop()
            elif not isinstance(part, Identity):
                stack.append(part)
        if not stack:
            return Identity(self.size)
        return stack[0] if len(stack) == 1 else Compose(tuple(stack))


def _flattened(transform: Transform) -> list[Transform]:
    if not isinstance(transform, Compose):
        return [transform]
    return [leaf for part in transform.parts for leaf in _flattened(part)]


def compose(first: Transform, second: Transform) -> Transform:
    """The first, then the second."""
    return Compose((first, second))
