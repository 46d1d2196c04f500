"""One node as the lowering table sees it: its inputs as source text, its attributes, what is known of shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.backends.gpu.program import Program
from qcompile.backends.gpu.symbols import Symbol, text_of, texts_of
from qcompile.errors import TargetError
from qcompile.ir.text import refusal

__all__ = ["Call", "refuse"]


def refuse(node: ir.Node, reason: str) -> TargetError:
    """The error for a node that cannot be lowered."""
    return refusal(TargetError, "triton: node '{name}' ({op}) cannot be lowered: {reason}", node, reason=reason)


class Call:
    """A node under translation.

    Args:
        program: gets what the node needs: weights, imports.
        node: the operator.
        narrow: whether its floats are in the program's dtype; else they stay float32.
    """

    def __init__(self, program: Program, node: ir.Node, narrow: bool) -> None:
        self.program, self.node, self.narrow = program, node, narrow

    # ---- inputs --------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.node.inputs)

    def has(self, i: int) -> bool:
        """Whether an optional input is given."""
        return i < len(self.node.inputs) and self.node.inputs[i] is not None

    def __getitem__(self, i: int) -> str:
        """Input ``i`` as a tensor on the device."""
        return self.program.tensor(self._value(i), self.narrow)

    def optional(self, i: int) -> str:
        """Input ``i`` as a tensor, or ``None``."""
        return self[i] if self.has(i) else "None"

    def operand(self, i: int) -> str:
        """Input ``i`` as a tensor, or as a number where it is a scalar that the host knows."""
        value = self._value(i)
        item = self.item(i)
        others = [self.rank(j) or 0 for j in range(len(self)) if j != i and self.has(j)]
        fits = self.rank(i) == 0 or max(others, default=0) >= (self.rank(i) or 0)
        if item is not None and fits and self._others_are_tensors(i):
            return text_of(item)
        return self.program.tensor(value, self.narrow)

    def _others_are_tensors(self, i: int) -> bool:
        return any(self.has(j) and self.host(j) is None for j in range(len(self)) if j != i)

    def _value(self, i: int) -> ir.Value:
        if not self.has(i):
            raise refuse(self.node, f"input {i} is missing")
        return self.node.inputs[i]

    # ---- what the host knows -------------------------------------------------------------------------------------

    def host(self, i: int) -> np.ndarray | None:
        """Input ``i`` as an array of numbers and symbols."""
        return self.program.hosts.get(self.node.inputs[i]) if self.has(i) else None

    def item(self, i: int) -> Any:
        """The one element of input ``i``, or ``None``."""
        array = self.host(i)
        return array.reshape(-1)[0] if array is not None and array.size == 1 else None

    def number(self, i: int, default: Any = None) -> Any:
        """The one element of input ``i`` where it is a constant.

        Raises:
            TargetError: if it is known at run time only.
        """
        if not self.has(i):
            return default
        item = self.item(i)
        if item is None or isinstance(item, Symbol):
            raise refuse(self.node, f"input {i} is not constant")
        return item

    def numbers(self, i: int) -> list[Any] | None:
        """The elements of input ``i`` where all are constants."""
        array = self.host(i)
        items = [] if array is None else list(array.reshape(-1))
        return None if array is None or any(isinstance(item, Symbol) for item in items) else items

    def scalar(self, i: int) -> str:
        """Source of input ``i`` as a number of the host; a value on the GPU is waited for."""
        array = self.host(i)
        return texts_of(array)[0] if array is not None else self.program.fetch(self._value(i), "item")

    def sizes(self, i: int) -> str:
        """Source of input ``i`` as a list of numbers; a value on the GPU is waited for."""
        array = self.host(i)
        if array is not None:
            return f"[{', '.join(texts_of(array))}]"
        return self.program.fetch(self._value(i), "tolist")

    # ---- what is known of it -------------------------------------------------------------------------------------

    def rank(self, i: int) -> int | None:
        """Axes of input ``i``."""
        if self.host(i) is not None:
            return self.host(i).ndim
        shape = self._value(i).shape
        return None if shape is None else len(shape)

    def need_rank(self, i: int) -> int:
        """Axes of input ``i``.

        Raises:
            TargetError: if they are not known.
        """
        rank = self.rank(i)
        if rank is None:
            raise refuse(self.node, f"the rank of '{self._value(i).name}' is not known")
        return rank

    def dim(self, i: int, axis: int) -> int | None:
        """A size of input ``i`` that is fixed."""
        shape = self._value(i).shape
        size = None if shape is None or not -len(shape) <= axis < len(shape) else shape[axis]
        return size if isinstance(size, int) else None

    def axis(self, i: int, axis: int) -> int:
        """``axis`` of input ``i``, counted from the front."""
        return axis if axis >= 0 else axis + self.need_rank(i)

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return self.program.opset

    def kind(self, i: int) -> ir.DataType | None:
        """Type of the elements of input ``i``."""
        return self.program.kind(self._value(i))

    # ---- attributes ----------------------------------------------------------------------------------------------

    def int(self, name: str, default: int | None = None) -> int | None:
        """An attribute."""
        return self.node.attributes.get_int(name, default)

    def float(self, name: str, default: float | None = None) -> float | None:
        """An attribute, as short as float32 allows."""
        found = self.node.attributes.get_float(name, default)
        return found if found is None else float(str(np.float32(found)))

    def string(self, name: str, default: str = "") -> str:
        """An attribute."""
        return self.node.attributes.get_string(name, default)

    def ints(self, name: str, default: Sequence[int] | None = None) -> list[int] | None:
        """An attribute."""
        found = self.node.attributes.get_ints(name, default)
        return None if found is None else list(found)

    def axes(self, i: int) -> list[int] | None:
        """Axes, from an attribute (older opsets) or from input ``i``; ``None`` if neither is given."""
        if "axes" in self.node.attributes:
            return self.ints("axes")
        if not self.has(i):
            return None
        found = self.numbers(i)
        if found is None:
            raise refuse(self.node, "its axes are not constant")
        return found

    # ---- what the program offers ---------------------------------------------------------------------------------

    def helper(self, name: str) -> str:
        """A function of the module ``operators`` that ships with the program."""
        return self.program.helper(name)

    def dtype(self, kind: ir.DataType | int) -> str:
        """Source of a torch dtype; floats are float32 or the program's, as the node computes."""
        return self.program.dtype(ir.DataType(kind), self.narrow)
