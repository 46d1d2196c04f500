"""A node under evaluation: its attributes, and how its entries are computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcompile.shapes.arithmetic import FLOATS, Arithmetic, Undecided, is_number

__all__ = ["Call", "from_front", "integers"]


@dataclass(frozen=True)
class Call:
    """A node, and how to compute it.

    Args:
        node: the operator with its attributes.
        arithmetic: of the entries.
        largest: how many entries a result may have.
    """

    node: ir.Node
    arithmetic: Arithmetic
    largest: int

    def integer(self, name: str, default: int) -> int:
        """An attribute."""
        return self.node.attributes.get_int(name, default)

    def listed(self, name: str, operand: np.ndarray | None) -> list[int] | None:
        """Numbers that older operators have as an attribute and newer ones read; ``None`` where neither is given."""
        if name in self.node.attributes:
            return list(self.node.attributes.get_ints(name))
        return None if operand is None else integers(operand)

    def needed(self, name: str, operand: np.ndarray | None) -> list[int]:
        """The same where it must be given.

        Raises:
            Undecided: if it is not.
        """
        found = self.listed(name, operand)
        if found is None:
            raise Undecided
        return found

    def real(self, *arrays: np.ndarray) -> bool:
        """Whether the entries are floats.

        Raises:
            Undecided: if neither the graph nor a number says it.
        """
        if self.node.outputs[0].dtype is not None:
            return self.node.outputs[0].dtype in FLOATS
        numbers = [item for array in arrays for item in array.flat if is_number(item)]
        if not numbers and any(array.size for array in arrays):
            raise Undecided
        return any(isinstance(item, float) for item in numbers)

    def reserve(self, sizes: Sequence[int]) -> None:
        """Refuse a result that is too large before it is made."""
        if math.prod(sizes) > self.largest:
            raise Undecided

    def apply(self, op: str, *arrays: np.ndarray) -> np.ndarray:
        """An elementwise operator of the arithmetic."""
        if "axis" in self.node.attributes:  # where the second operand starts, before operators broadcast as now
            raise Undecided
        self.reserve(np.broadcast_shapes(*(array.shape for array in arrays)))
        return self.arithmetic[op](*arrays)


def integers(array: np.ndarray) -> list[int]:
    """Entries that say where others go."""
    items = list(array.flat)
    if not all(isinstance(item, int) for item in items):
        raise Undecided
    return items


def from_front(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    if not -rank <= axis < rank:
        raise IndexError
    return axis % rank
