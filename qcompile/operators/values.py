"""The values of a program under translation: which variable, weight or number of the host holds each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.errors import TargetError
from qcompile.ir.required import name_of, shape_of
from qcompile.operators import host
from qcompile.operators.names import Names
from qcompile.operators.precision import Precision
from qcompile.operators.statements import Statement
from qcompile.operators.symbols import Symbol, texts_of

__all__ = ["Values"]

_TORCH = {
    ir.DataType.DOUBLE: "torch.float64", ir.DataType.INT64: "torch.int64", ir.DataType.INT32: "torch.int32",
    ir.DataType.INT16: "torch.int16", ir.DataType.INT8: "torch.int8", ir.DataType.UINT8: "torch.uint8",
    ir.DataType.BOOL: "torch.bool", ir.DataType.COMPLEX64: "torch.complex64",
}  # fmt: skip
_ATTENTION = ("attention", "attention_with_cache", "rotary")


class Values:
    """State that grows node by node.

    Args:
        opset: version of the standard operators.
        names: gives identifiers.
        precision: the types that it computes in.
        runtime: what computes, for messages.
    """

    def __init__(self, opset: int, names: Names, precision: Precision, runtime: str) -> None:
        self.opset, self.names, self.precision, self.runtime = opset, names, precision, runtime
        self.exact = not precision.mixed
        self.weights: dict[str, tuple[ir.Value, str]] = {}  # attribute -> (constant, how it is loaded)
        self.notes: dict[str, Any] = {"captures": True}
        self.hosts: dict[ir.Value, np.ndarray] = {}
        self.statements: list[Statement] = []
        self._variables: dict[ir.Value, str] = {}
        self._narrow: dict[ir.Value, bool] = {}
        self._made: dict[tuple[Any, ...], str] = {}
        self._constants: dict[ir.Value, ir.Value] = {}
        self._dims: dict[str, str] = {}

    # ---- what is known -------------------------------------------------------------------------------------------

    def kind(self, value: ir.Value) -> ir.DataType | None:
        """Type of the elements, as the graph declares it, or as the host's numbers have it."""
        if value.const_value is not None:
            return value.const_value.dtype
        return _kind_of(self.hosts[value]) if value.dtype is None and value in self.hosts else value.dtype

    def is_narrow(self, value: ir.Value) -> bool:
        """Whether a value is in the program's dtype."""
        return self._narrow.get(value, False)

    def know(self, value: ir.Value) -> None:
        """Keep a small constant as numbers of the host."""
        array = host.constant(value)
        if array is not None:
            self.hosts[value] = array

    def size(self, value: ir.Value, axis: int) -> int | Symbol:
        """A size of a value: a number, or a variable of the program."""
        if value in self.hosts:
            return self.hosts[value].shape[axis]
        dim = shape_of(value)[axis]
        if isinstance(dim, int):
            return dim
        if dim.value in self._dims:
            return Symbol(self._dims[dim.value], natural=True)
        key = ("size", value, axis)
        if key not in self._made:
            source = self.own(value)
            self._made[key] = self.names.make(f"{source.removeprefix('self.')}_size{axis}")
            self.emit(f"{self._made[key]} = {source}.shape[{axis}]", (self._made[key],), tensors=False)
        return Symbol(self._made[key], natural=True)

    # ---- source of values ----------------------------------------------------------------------------------------

    def tensor(self, value: ir.Value, narrow: bool) -> str:
        """A value on the device, its floats in the program's dtype or in float32."""
        narrow = narrow or not self.precision.mixed
        if value.const_value is not None and value not in self._variables:
            return f"self.{self._weight(value, narrow)}"
        if value in self.hosts:
            return self._materialize(value, narrow)
        if value not in self._variables:
            raise TargetError(f"{self.runtime}: the graph computes '{value.name}' nowhere")
        name = self._variables[value]
        if self.kind(value) not in self.precision.floats or self.is_narrow(value) == narrow:
            return name
        wanted, text = (f"{name}_narrow", f"{name}.to(dtype)") if narrow else (f"{name}_wide", f"{name}.float()")
        return self._once(("precision", value, narrow), wanted, text)

    def own(self, value: ir.Value) -> str:
        """A value on the device, in the type that it has."""
        return self.tensor(value, self.is_narrow(value))

    def _weight(self, value: ir.Value, narrow: bool) -> str:
        mode = ("narrow" if narrow else "wide") if self.kind(value) in self.precision.floats else "raw"
        key = ("weight", value, mode)
        if key not in self._made:
            self._made[key] = self.names.make(name_of(value))
            self.weights[self._made[key]] = (value, mode)
        return self._made[key]

    def _materialize(self, value: ir.Value, narrow: bool) -> str:
        array, kind = self.hosts[value], self.kind(value) or _kind_of(self.hosts[value])
        if array.ndim and not any(isinstance(item, Symbol) for item in array.reshape(-1)):
            return f"self.{self._weight(self._stored(value, array, kind), narrow)}"
        items, dtype = ", ".join(texts_of(array)), self.dtype(kind, narrow)
        text = f"torch.full((), {items}, dtype={dtype}, device=device)"
        if array.ndim:
            text = f"{self.helper('vector')}([{items}], {dtype}, device)"
            text += f".reshape{array.shape}" if array.ndim > 1 else ""
        return self._once(("host", value, narrow), value.name or "constant", text)

    def _stored(self, value: ir.Value, array: np.ndarray, kind: ir.DataType) -> ir.Value:
        """Numbers that are known now, as a constant of the weights file."""
        if value not in self._constants:
            tensor = ir.tensor(array.astype(kind.numpy()), dtype=kind, name=value.name)
            self._constants[value] = ir.Value(name=value.name or "constant", const_value=tensor)
        return self._constants[value]

    def _once(self, key: tuple[Any, ...], wanted: str, text: str) -> str:
        """The variable of an expression that is computed at its first use."""
        if key not in self._made:
            name = self.names.make(wanted)
            self.emit(f"{name} = {text}", (name,))
            self._made[key] = name
        return self._made[key]

    def cast(self, value: ir.Value, kind: ir.DataType) -> str:
        """A cast; between floats of 16 and 32 bits there is none, they share the program's dtype."""
        own, text = self.kind(value), self.own(value)
        floats = self.precision.floats
        if own == kind or own in floats and kind in floats:
            return text
        as_float = ".float()" if self.precision.mixed else ".to(dtype)"
        return f"{text}{as_float}" if kind in floats else f"{text}.to({self.dtype(kind, False)})"

    def fetch(self, value: ir.Value, how: str) -> str:
        """A value of the GPU as numbers of the host: the program waits for it there."""
        self.notes["captures"] = False
        return f"{self.own(value)}.{how}()"

    def dtype(self, kind: ir.DataType, narrow: bool) -> str:
        """A torch dtype.

        Raises:
            TargetError: if torch has none for it.
        """
        if kind in self.precision.floats:
            return "dtype" if narrow or not self.precision.mixed else "torch.float32"
        if kind not in _TORCH:
            raise TargetError(f"{self.runtime}: values of type {kind.name} cannot be computed")
        return _TORCH[kind]

    def helper(self, name: str) -> str:
        """A function that ships with the program."""
        return f"{'attention' if name in _ATTENTION else 'operators'}.{name}"

    def kernel(self, name: str) -> str:
        """A function of the kernels."""
        return f"kernels.{name}"

    # ---- statements ----------------------------------------------------------------------------------------------

    def emit(self, text: str, writes: tuple[str, ...], *, tensors: bool = True) -> None:
        """A line."""
        self.statements.append(Statement(writes, "        " + text, tensors))

    def emit_block(self, text: str, writes: tuple[str, ...]) -> None:
        """Several lines, indented already, as one statement."""
        self.statements.append(Statement(writes, text))

    def let(self, value: ir.Value, name: str, narrow: bool) -> None:
        """Let a variable hold a value."""
        self._variables[value], self._narrow[value] = name, narrow

    @contextmanager
    def nested(self) -> Iterator[list[Statement]]:
        """Collects the statements of an inner graph; what is made there is forgotten behind it."""
        outer, made = self.statements, dict(self._made)
        self.statements = []
        try:
            yield self.statements
        finally:
            self.statements = outer
            self._made = {key: name for key, name in self._made.items() if key in made or key[0] == "weight"}


def _kind_of(array: np.ndarray) -> ir.DataType:
    first = array.reshape(-1)[0] if array.size else 0
    return ir.DataType.FLOAT if isinstance(first, float) else ir.DataType.INT64
