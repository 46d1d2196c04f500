"""Schemes with a branch of low rank beside the rounded weight, which compete with those that have none."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompile.choice.splits import Branch
from qcompile.errors import InputError
from qcompile.targets.scheme import FLOAT, Scheme

if TYPE_CHECKING:
    from qcompile.analysis.spaces import Site
    from qcompile.targets.target import Target

__all__ = ["Apart", "alone", "rank_in", "scheme_of", "size_of", "with_branches", "within"]


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
        """Such as ``"int4-g32+r16"``, as ``scheme_of`` reads it, or ``"int4-g32 + branch{rank=16,rounds=1}"``."""
        if self.branch == Branch(rank=self.branch.rank):
            return f"{self.alone.name}+r{self.branch.rank}"
        return f"{self.alone.name} + {self.branch}"

    @property
    def alone(self) -> Scheme:
        """The same formats without a branch."""
        return Scheme(self.weight, self.activation)


def scheme_of(target: Target, text: str) -> Scheme:
    """The scheme that a name means on a target: ``int4+r32`` is its ``int4`` with a branch of that rank beside it.

    Raises:
        TargetError: if the target cannot run it.
        InputError: if there is no such format, or it is none to have a branch.
    """
    base, plus, rank = text.rpartition("+r")
    if not plus:
        return target.scheme(text)
    alone = target.scheme(base)
    if not rank.isdecimal() or int(rank) < 1:
        raise InputError(f"'{text}': the rank of a branch is a whole number above 0, such as {base}+r32")
    if alone.weight is None:
        raise InputError(f"'{text}': a weight that stays float has no use for a branch beside it")
    if target.modules:
        raise InputError(f"target '{target.name}' writes modules as they are: '{text}' would add products to them")
    return Apart(alone.weight, alone.activation, Branch(rank=int(rank)))


def alone(schemes: Iterable[Scheme]) -> list[Scheme]:
    """The schemes without branches, each once."""
    return list(dict.fromkeys(own.alone if isinstance(own, Apart) else own for own in schemes))


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
    """The numbers that a branch beside a weight of that shape has, at most: one of the input has a third matrix."""
    third = max(shape) if how.format == FLOAT.name and how.of in ("best", "input") else 0
    return rank_in(shape, how) * (sum(shape) + third)
