"""Transforms of the features of one place as those of rows that cover several places, one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field

from qcompile.transforms.composite import BlockDiagonal
from qcompile.transforms.transform import Transform

__all__ = ["Widened"]


@dataclass(frozen=True, eq=False)
class Widened:
    """``T`` as ``I ⊗ T``: the same object for the same transform, by which results are known again.

    Args:
        taps: places of a row; none may change basis where it is 0.
    """

    taps: int = 1
    _known: dict[Transform, Transform] = field(default_factory=dict, repr=False)

    def __call__(self, transform: Transform | None) -> Transform | None:
        """The transform of a row; ``None`` for none."""
        if transform is None or self.taps == 1:
            return transform
        if not self.taps:
            return None
        return self._known.setdefault(transform, BlockDiagonal(transform, self.taps))
