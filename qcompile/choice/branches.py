"""Schemes with a branch of low rank beside the rounded weight, which compete with those that have none."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qcompile.choice.splits import Branch
from qcompile.targets.scheme import FLOAT, Scheme

if TYPE_CHECKING:
    import numpy as np
    import torch

    from qcompile.analysis.spaces import Site
    from qcompile.formats.scalar import Scalar
    from qcompile.transforms import Transform

__all__ = ["Apart", "Beside", "branch_of", "rank_in", "size_of", "with_branches", "within"]


@dataclass(frozen=True)
class Apart(Scheme):
    """A scheme of what a branch leaves of a weight.

    Args:
        branch: beside the site.
        beside: the scheme of the branch.
    """

    branch: Branch = Branch()
    beside: Scheme = FLOAT

    @property
    def name(self) -> str:
        """Such as ``"int4-g32 + branch{rank=16}"``."""
        return f"{self.alone.name} + {self.branch}"

    @property
    def alone(self) -> Scheme:
        """The same formats without a branch."""
        return Scheme(self.weight, self.activation)


@dataclass(frozen=True, eq=False)
class Beside:
    """A branch: ``left [out, rank]`` and ``right [rank, in]``.

    Args:
        few: the rows of ``left`` that a prediction looks at.
        scheme: of both.
    """

    left: torch.Tensor
    right: torch.Tensor
    few: torch.Tensor
    scheme: Scheme

    @staticmethod
    def of(weight: torch.Tensor, energy: np.ndarray | None, apart: Apart) -> Beside:
        """The branch that a scheme takes out of a weight ``[out, in]``."""
        left, right = branch_of(weight, energy, apart.branch, apart.weight)
        return Beside(left, right, left, apart.beside)

    def spread(self, count: int) -> Beside:
        """With as many of the rows to look at, evenly spread."""
        from qcompile.statistics.collected import spread

        return replace(self, few=spread(self.few, count))

    def whole(self, rest: torch.Tensor) -> torch.Tensor:
        """Rows of the weight, from what the branch left of them."""
        return rest + self.few @ self.right

    def exact(self, rows: torch.Tensor, transform: Transform | None) -> torch.Tensor:
        """The output of the branch on rows in the basis of a transform: ``[rows, few]``."""
        return rows @ self._turned(transform).T @ self.few.T

    def off(self, rows: torch.Tensor, transform: Transform | None, *, few: bool = True) -> torch.Tensor:
        """The error of that output, or of the whole one, with the branch in its formats."""
        from qcompile.formats import fake_quantize, fake_quantize_rows

        weight, activation, right = self.scheme.weight, self.scheme.activation, self._turned(transform)
        left = self.few if few else self.left
        if weight is None:
            return rows.new_zeros(())
        seen = rows if activation is None else fake_quantize_rows(rows, activation)
        middle = seen @ fake_quantize(right, weight).T
        middle = middle if activation is None else fake_quantize_rows(middle, activation)
        return middle @ fake_quantize(left, weight).T - rows @ right.T @ left.T

    def _turned(self, transform: Transform | None) -> torch.Tensor:
        return self.right if transform is None else transform.dual().apply(self.right, -1)


def with_branches(schemes: Sequence[Scheme], ranks: Sequence[int], beside: Scheme) -> list[Scheme]:
    """The schemes, and those of fewer bits than a branch once more with branches of those ranks beside them."""
    branches = [Branch(rank=rank, format=beside.name) for rank in ranks]
    less = [scheme for scheme in schemes if scheme.bits < beside.bits]
    found = [Apart(scheme.weight, scheme.activation, branch, beside) for scheme in less for branch in branches]
    return [*schemes, *found]


def within(scheme: Scheme, site: Site, separable: Collection[str]) -> Scheme:
    """The scheme for a site, without a branch where it cannot have one."""
    return scheme.alone if isinstance(scheme, Apart) and site.name not in separable else scheme


def rank_in(shape: Sequence[int], how: Branch) -> int:
    """The rank of a branch beside a weight of that shape: at most a quarter of the smaller side."""
    return min(how.rank, min(shape) // 4)


def size_of(shape: Sequence[int], how: Branch) -> int:
    """The numbers that a branch beside a weight of that shape has."""
    return rank_in(shape, how) * sum(shape)


def branch_of(
    weight: torch.Tensor, energy: np.ndarray | None, how: Branch, fmt: Scalar | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The branch of a weight ``[out, in]``: ``left [out, rank]`` and ``right [rank, in]``.

    Args:
        energy: of each feature that it reads; without it all count alike.
        fmt: what the rest is rounded to, as far as that is known.
    """
    import torch

    from qcompile.formats import fake_quantize
    from qcompile.transforms import svd_lowrank

    loud = torch.ones(weight.shape[1], device=weight.device)
    if energy is not None:
        known = torch.from_numpy(energy.copy()).float().to(weight.device)
        loud = (known / known.mean().clamp_min(1e-30)).clamp_min(1e-6) ** (how.smooth / 2)

    def rounded(rest: torch.Tensor) -> torch.Tensor:
        return rest if fmt is None else fake_quantize(rest / loud, fmt) * loud

    found = svd_lowrank(weight * loud, rank_in(weight.shape, how), rounded, how.rounds, of_error=how.error)
    return found.left, found.right / loud
