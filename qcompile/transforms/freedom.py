"""Freedoms: the groups of basis changes that the operators on a space commute with.

A freedom is written as the set of *kinds of matrices* that its group contains, so that the meet of two
freedoms is the intersection of two sets. The kinds below are chosen so that every group which an operator
of ONNX leaves is a union of them, and so that each group is closed under Kronecker products and direct
sums: a freedom of a whole axis holds for the factors of that axis as well.
"""

from __future__ import annotations

import enum

__all__ = ["Freedom"]


class Freedom(enum.Flag):
    """A group of invertible matrices, as the kinds of matrices that it contains.

    The named groups, from large to small::

        GENERAL ⊃ ORTHOGONAL ⊃ ORTHOGONAL_ONES ⊃ PERMUTATION ⊃ NONE
        GENERAL ⊃ MONOMIAL ⊃ POSITIVE_MONOMIAL ⊃ PERMUTATION
        GENERAL ⊃ MONOMIAL ⊃ DIAGONAL ⊃ POSITIVE_DIAGONAL ⊃ NONE
        ORTHOGONAL ⊃ SIGNED_PERMUTATION ⊃ SIGNS ⊃ NONE

    ``a & b`` is the meet, ``a in b`` says that group ``a`` lies in group ``b``.
    """

    NONE = 0
    _PERMUTATION = enum.auto()
    _POSITIVE_DIAGONAL = enum.auto()
    _SIGNS = enum.auto()
    _ONES = enum.auto()  # orthogonal with T·1 = 1
    _ORTHOGONAL = enum.auto()
    _GENERAL = enum.auto()

    PERMUTATION = _PERMUTATION
    SIGNS = _SIGNS
    POSITIVE_DIAGONAL = _POSITIVE_DIAGONAL
    DIAGONAL = _POSITIVE_DIAGONAL | _SIGNS
    SIGNED_PERMUTATION = _PERMUTATION | _SIGNS
    POSITIVE_MONOMIAL = _PERMUTATION | _POSITIVE_DIAGONAL
    MONOMIAL = _PERMUTATION | _POSITIVE_DIAGONAL | _SIGNS
    ORTHOGONAL_ONES = _PERMUTATION | _ONES
    ORTHOGONAL = _PERMUTATION | _SIGNS | _ONES | _ORTHOGONAL
    GENERAL = _PERMUTATION | _SIGNS | _POSITIVE_DIAGONAL | _ONES | _ORTHOGONAL | _GENERAL

    def __contains__(self, other: object) -> bool:
        # ``_value_`` is what ``value`` looks up at every call; the analysis asks a hundred thousand times.
        return isinstance(other, Freedom) and (self._value_ & other._value_) == other._value_

    @property
    def label(self) -> str:
        """The name used in manifests and reports: ``'orthogonal-ones'``, ``'none'``."""
        return (self.name or "NONE").lstrip("_").lower().replace("_", "-")
