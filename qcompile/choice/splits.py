"""Ways to split the weight of a site into two that are added up, by name, as words with options."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

from qcompile.errors import InputError, unknown
from qcompile.ir.required import operand
from qcompile.ir.sums import inseparable
from qcompile.words import options_given, spelled, split_words

if TYPE_CHECKING:
    from qcompile.analysis.spaces import Site
    from qcompile.notes import Decline

__all__ = ["SPLIT", "SPLITS", "Auto", "Branch", "Columns", "Flatten", "Split", "beside", "separable", "split_of"]

#: In the metadata of an operator that stands beside a site, the split that put it there.
SPLIT = "qcompile.split"

#: What a branch may be of.
WAYS = ("best", "weight", "error", "input")


@dataclass(frozen=True)
class Columns:
    """Loud columns apart: those that read the features of most energy, as calibration data shows them.

    Args:
        count: the loudest features, at most an eighth of them.
        above: those that reach this magnitude as well; 0 for none.
        format: of the columns.
    """

    count: int = 0
    above: float = 0.0
    format: str = "float"
    name: ClassVar[str] = "columns"
    #: Behind the name of the site, that of the operator beside it.
    suffix: ClassVar[str] = ".columns"

    def __str__(self) -> str:
        return _said(self)


@dataclass(frozen=True)
class Branch:
    """A branch of low rank: leading directions that stay in high precision.

    Args:
        rank: of the branch, at most a quarter of the smaller side of a weight.
        rounds: times that it is made for what the rounded rest lacks; the best counts.
        smooth: the power of a feature's loudness that it counts with; 0 looks at the weight alone.
        of: the ``weight``, each feature weighted by how loud it is; the ``error``, which begins with what rounding
            loses; the ``input``, whose directions are taken off it before it is rounded; or the ``best`` of these, by
            errors on sequences held out.
        format: of the branch; one that is not float is none of the input.
    """

    rank: int = 32
    rounds: int = 4
    smooth: float = 0.5
    of: str = "best"
    format: str = "float"
    name: ClassVar[str] = "branch"
    suffix: ClassVar[str] = ".branch"

    def __str__(self) -> str:
        return _said(self)


@dataclass(frozen=True)
class Flatten:
    """Loud features in pieces: each piece is at most as loud as the others, and read by a column of its own.

    Args:
        times: the size of a piece, as a multiple of the median of what features reach.
        most: pieces of a feature; the last has what is left.
    """

    times: float = 2.0
    most: int = 8
    format: ClassVar[str] = "float"  # nothing stands beside the site
    name: ClassVar[str] = "flatten"

    def __str__(self) -> str:
        return _said(self)


@dataclass(frozen=True)
class Auto:
    """Branches where they are worth their bits: they compete with formats and transforms under the budgets.

    Args:
        least: the smallest rank that competes; each other one is twice the one before.
        most: the largest.
        format: of branches, which stand beside formats of fewer bits; without it the one of most bits that competes.
    """

    least: int = 8
    most: int = 32
    format: str = ""
    name: ClassVar[str] = "auto"

    def __str__(self) -> str:
        return _said(self)

    @property
    def ranks(self) -> list[int]:
        """The ranks that compete."""
        doubled = (self.least << times for times in range(self.most.bit_length()))
        return [rank for rank in doubled if rank <= self.most]


def separable(sites: Iterable[Site], decline: Decline, what: str, *, edge: bool = False) -> list[Site]:
    """The sites that hold their own weight, and whose weight can become a sum of two; of the others it is said why not.

    Args:
        what: was to be done to them.
        edge: as for ``inseparable``.
    """
    found = []
    for site in sites:
        if operand(site.node, 1) is not site.weight:  # it was split already
            continue
        reason = inseparable(site.node, edge=edge)
        if reason is None:
            found.append(site)
        else:
            decline(site.name, what, reason)
    return found


def beside(node: ir.Node) -> bool:
    """Whether an operator is part of a branch: it adds to the weights of the model."""
    word = node.metadata_props.get(SPLIT)
    return word is not None and isinstance(split_of(word), Branch)


Split = Columns | Branch | Flatten | Auto

SPLITS: dict[str, type[Split]] = {split.name: split for split in (Columns, Branch, Flatten, Auto)}


def _said(split: Split) -> str:
    """The word for a split, with the options that differ from their defaults."""
    return spelled(split.name, {f.name: value for f in fields(split) if (value := getattr(split, f.name)) != f.default})


def split_of(text: str) -> Split:
    """The split that a word means, such as ``branch{rank=16}``.

    Raises:
        InputError: if there is none of that name, or its options make no sense.
    """
    words = split_words(text)
    if words is None or len(words) != 1:
        raise InputError(f"'{text}' is no split, such as columns{{count=64}} or branch{{rank=16}}")
    name, given = words[0]
    if name not in SPLITS:
        raise InputError(unknown("split", name, SPLITS))
    known = {field.name: field.default for field in fields(SPLITS[name])}
    made = SPLITS[name](**options_given(f"split '{name}'", known, given))
    if isinstance(made, Columns) and (made.count < 0 or made.above < 0 or not (made.count or made.above)):
        raise InputError("split 'columns' needs a count above 0, or a magnitude that columns lie above")
    if isinstance(made, Flatten) and (made.times <= 0 or made.most < 2):
        raise InputError("split 'flatten' needs times above 0, and at least 2 pieces at most")
    if isinstance(made, Branch) and (made.rank < 1 or made.rounds < 1):
        raise InputError("split 'branch' needs a rank and rounds of at least 1")
    if isinstance(made, Branch) and made.of not in WAYS:
        raise InputError(unknown("way 'of' of a branch", made.of, WAYS))
    if isinstance(made, Auto) and not 1 <= made.least <= made.most:
        raise InputError("split 'auto' needs a least rank of at least 1, and at most the most")
    return made
