"""One node as the lowering table sees it: its inputs as source text, its attributes, what is known of shapes."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import onnx_ir as ir

from qcompile.errors import TargetError
from qcompile.ir import required
from qcompile.ir.text import refusal
from qcompile.operators.protocol import Program
from qcompile.operators.symbols import Symbol, text_of, texts_of

__all__ = ["Call", "reads_more"]


def reads_more(node: ir.Node) -> bool:
    """Whether more than the first output of a node is read."""
    return any(value.uses() or value.is_graph_output() for value in node.outputs[1:])


class Call:
    """A node under translation.

    Args:
        program: gets what the node needs: weights, imports.
        node: the operator.
        narrow: whether its floats are in the program's dtype; else they stay float32.
    """

    def __init__(self, program: Program, node: ir.Node, narrow: bool) -> None:
        self.program, self.node, self.narrow = program, node, narrow

    def refuse(self, reason: str) -> TargetError:
        """The error for a node that cannot be translated."""
        sentence = f"{self.program.runtime}: node '{{name}}' ({{op}}) cannot be lowered: {{reason}}"
        return refusal(TargetError, sentence, self.node, reason=reason)

    # ---- inputs --------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.node.inputs)

    def has(self, i: int) -> bool:
        """Whether an optional input is given."""
        return required.optional(self.node, i) is not None

    def value(self, i: int) -> ir.Value:
        """Input ``i``.

        Raises:
            TargetError: if it is not given.
        """
        found = required.optional(self.node, i)
        if found is None:
            raise self.refuse(f"input {i} is missing")
        return found

    def __getitem__(self, i: int) -> str:
        """Input ``i`` as a tensor on the device."""
        return self.program.tensor(self.value(i), self.narrow)

    def optional(self, i: int) -> str:
        """Input ``i`` as a tensor, or ``None``."""
        return self[i] if self.has(i) else "None"

    def operand(self, i: int) -> str:
        """Input ``i`` as a tensor, or as a number where it is a scalar that the host knows."""
        value = self.value(i)
        item = self.item(i)
        others = [self.rank(j) or 0 for j in range(len(self)) if j != i and self.has(j)]
        fits = self.rank(i) == 0 or max(others, default=0) >= (self.rank(i) or 0)
        if item is not None and fits and self._others_are_tensors(i):
            return text_of(item)
        return self.program.tensor(value, self.narrow)

    def _others_are_tensors(self, i: int) -> bool:
        return any(self.has(j) and self.host(j) is None for j in range(len(self)) if j != i)

    # ---- what the host knows -------------------------------------------------------------------------------------

    def host(self, i: int) -> np.ndarray | None:
        """Input ``i`` as an array of numbers and symbols."""
        value = required.optional(self.node, i)
        return None if value is None else self.program.hosts.get(value)

    def is_empty(self, i: int) -> bool:
        """Whether input ``i`` is known to have no elements."""
        array = self.host(i)
        return array is not None and array.size == 0

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
            raise self.refuse(f"input {i} is not constant")
        return item

    def numbers(self, i: int) -> list[Any] | None:
        """The elements of input ``i`` where all are constants."""
        array = self.host(i)
        items = [] if array is None else list(array.reshape(-1))
        return None if array is None or any(isinstance(item, Symbol) for item in items) else items

    def scalar(self, i: int) -> str:
        """Source of input ``i`` as a number of the host; a value on the GPU is waited for."""
        array = self.host(i)
        return texts_of(array)[0] if array is not None else self.program.fetch(self.value(i), "item")

    def sizes(self, i: int) -> str:
        """Source of input ``i`` as a list of numbers; a value on the GPU is waited for."""
        array = self.host(i)
        if array is not None:
            return f"[{', '.join(texts_of(array))}]"
        return self.program.fetch(self.value(i), "tolist")

    # ---- what is known of it -------------------------------------------------------------------------------------

    def rank(self, i: int) -> int | None:
        """Axes of input ``i``."""
        array = self.host(i)
        if array is not None:
            return array.ndim
        shape = self.value(i).shape
        return None if shape is None else len(shape)

    def need_rank(self, i: int) -> int:
        """Axes of input ``i``.

        Raises:
            TargetError: if they are not known.
        """
        rank = self.rank(i)
        if rank is None:
            raise self.refuse(f"the rank of '{self.value(i).name}' is not known")
        return rank

    def dim(self, i: int, axis: int) -> int | None:
        """A size of input ``i`` that is fixed."""
        shape = self.value(i).shape
        size = None if shape is None or not -len(shape) <= axis < len(shape) else shape[axis]
        return size if isinstance(size, int) else None

    def axis(self, i: int, axis: int) -> int:
        """``axis`` of input ``i``, counted from the front."""
        return axis if axis >= 0 else axis + self.need_rank(i)

    def is_last(self, i: int, axis: int) -> bool:
        """Whether ``axis`` is known to be the last one of input ``i``."""
        rank = self.rank(i)
        return axis == -1 or rank is not None and axis == rank - 1

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return self.program.opset

    def kind(self, i: int) -> ir.DataType | None:
        """Type of the elements of input ``i``."""
        return self.program.kind(self.value(i))

    # ---- attributes ----------------------------------------------------------------------------------------------

    @overload
    def int(self, name: str) -> builtins.int | None: ...

    @overload
    def int(self, name: str, default: builtins.int) -> builtins.int: ...

    def int(self, name: str, default: builtins.int | None = None) -> builtins.int | None:
        """An attribute."""
        return self.node.attributes.get_int(name, default)

    def need_int(self, name: str) -> builtins.int:
        """An attribute.

        Raises:
            TargetError: if it is not given.
        """
        found = self.int(name)
        if found is None:
            raise self._missing(name)
        return found

    @overload
    def float(self, name: str) -> builtins.float | None: ...

    @overload
    def float(self, name: str, default: builtins.float) -> builtins.float: ...

    def float(self, name: str, default: builtins.float | None = None) -> builtins.float | None:
        """An attribute; in programs that people read, as short as float32 allows."""
        found = self.node.attributes.get_float(name, default)
        return found if found is None or self.program.exact else float(str(np.float32(found)))

    def string(self, name: str, default: str = "") -> str:
        """An attribute."""
        return self.node.attributes.get_string(name, default)

    @overload
    def ints(self, name: str) -> list[builtins.int] | None: ...

    @overload
    def ints(self, name: str, default: Sequence[builtins.int]) -> list[builtins.int]: ...

    def ints(self, name: str, default: Sequence[builtins.int] | None = None) -> list[builtins.int] | None:
        """An attribute."""
        found = self.node.attributes.get_ints(name, default)
        return None if found is None else list(found)

    def need_ints(self, name: str) -> list[builtins.int]:
        """An attribute.

        Raises:
            TargetError: if it is not given.
        """
        found = self.ints(name)
        if found is None:
            raise self._missing(name)
        return found

    def _missing(self, name: str) -> TargetError:
        return self.refuse(f"its attribute '{name}' is missing")

    def axes(self, i: builtins.int) -> list[builtins.int] | None:
        """Axes, from an attribute (older opsets) or from input ``i``; ``None`` if neither is given."""
        if "axes" in self.node.attributes:
            return self.ints("axes")
        if not self.has(i):
            return None
        found = self.numbers(i)
        if found is None:
            raise self.refuse("its axes are not constant")
        return found

    # ---- what the program offers ---------------------------------------------------------------------------------

    def helper(self, name: str) -> str:
        """A function of the module ``operators`` that ships with the program."""
        return self.program.helper(name)

    def dtype(self, kind: ir.DataType | builtins.int) -> str:
        """Source of a torch dtype; floats are float32 or the program's, as the node computes."""
        return self.program.dtype(ir.DataType(kind), self.narrow)
