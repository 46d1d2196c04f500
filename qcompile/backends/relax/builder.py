"""A Relax function under construction: values of the graph by name, parameters, emitted operators."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import tvm_ffi
from tvm import relax, te, tirx

from qcompile.backends.relax import known
from qcompile.backends.relax.kernels.lanes import Lanes
from qcompile.errors import TargetError
from qcompile.ir.required import name_of

__all__ = ["Builder", "Value"]

#: A value of the graph: an expression that the artifact computes, or what is known while compiling.
Value: TypeAlias = relax.Expr | np.ndarray

_OPAQUE = 8  # TVM's word for a kernel that is not fused
_INLINE = 1024  # elements of a constant that becomes part of the code, where it may fuse


class Builder:
    """Turns values of the graph into expressions.

    Args:
        lanes: the machine that kernels are written for.
        opset: of the graph's standard operators.
    """

    def __init__(self, lanes: Lanes, opset: int) -> None:
        self.lanes = lanes
        self.opset = opset
        self.block = relax.BlockBuilder()
        self.parameters: dict[str, np.ndarray] = {}
        self.symbols: dict[str, tirx.Var] = {}
        self._arguments: dict[str, relax.Var] = {}
        self._values: dict[ir.Value, Value] = {}
        self._kernels: dict[Hashable, Any] = {}
        self._made: dict[Hashable, Any] = {}

    # ---- values ------------------------------------------------------------------------------------------------------

    def symbol(self, name: str) -> tirx.Var:
        """The size of that name."""
        if name not in self.symbols:
            self.symbols[name] = tirx.Var(_identifier(name), "int64")
            known.bound(self.symbols[name])
        return self.symbols[name]

    def set(self, value: ir.Value, result: Value) -> None:
        """Remember what a value of the graph is."""
        self._values[value] = result

    def get(self, value: ir.Value | None) -> Value | None:
        """The expression of a value of the graph; constants of some size become parameters at their first use."""
        if value is None:
            return None
        if value not in self._values:
            if value.const_value is None:
                raise TargetError(f"TVM: value '{value.name}' is read but never computed")
            array = value.const_value.numpy()
            small = array.size <= _INLINE and array.dtype.kind in "fiub"
            self._values[value] = array if small else self.parameter(name_of(value), np.ascontiguousarray(array))
        return self._values[value]

    def parameter(self, name: str, array: np.ndarray) -> relax.Var:
        """An argument of the function whose content is stored beside the library, under a name of its own."""
        number, wanted = 0, name
        while name in self._arguments:
            number += 1
            name = f"{wanted}_{number}"
        self.parameters[name] = array
        kind = relax.TensorType([tirx.const(n, "int64") for n in array.shape], str(array.dtype))
        self._arguments[name] = relax.Var(_identifier(name), kind)
        return self._arguments[name]

    @property
    def arguments(self) -> list[relax.Var]:
        """The variables of all parameters, in order."""
        return list(self._arguments.values())

    def shared(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Something made at its first use."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def tensor(self, value: Value) -> relax.Expr:
        """The value as an expression."""
        if not isinstance(value, np.ndarray):
            return value
        if value.dtype != object:
            return relax.const(value, str(value.dtype))
        flat, dtype = [known.simplify(v) for v in value.reshape(-1)], self.dtype(value)

        def element(*index: Any) -> tirx.Expr:
            position, result = _position(index, value.shape), tirx.const(0, dtype)
            for i, size in enumerate(flat):
                result = tirx.Select(position == i, tirx.Cast(dtype, _int64(size)), result)
            return result

        return self.compute(value.shape, element, "sizes")

    # ---- emitting ----------------------------------------------------------------------------------------------------

    def emit(self, expression: relax.Expr) -> relax.Expr:
        """A variable bound to an expression."""
        return self.block.emit(expression)

    def compute(self, shape: Sequence[Any], element: Callable[..., tirx.Expr], name: str, *inputs: relax.Expr) -> Any:
        """A tensor by its elements: ``element(tensors..., indices...)`` for inputs as TE tensors."""

        sizes = [_int64(size) for size in shape]
        outer = self._symbols_in(sizes, element, inputs)

        def define(symbols: list[tirx.Var], *tensors: te.Tensor) -> te.Tensor:
            inner = dict(zip(outer, symbols, strict=True))
            own = tuple(_substitute(size, inner) for size in sizes)
            return te.compute(own, lambda *index: _substitute(element(*tensors, *index), inner), name=name)

        attributes = None if self._bound(outer, [sizes, *(x.ty.shape for x in inputs)]) else {"op_pattern": _OPAQUE}
        return self.block.emit_te(define, outer, *inputs, primfunc_name_hint=name, primfunc_attrs=attributes)

    def _bound(self, needed: Sequence[tirx.Var], shapes: Sequence[Sequence[tirx.Expr]]) -> bool:
        """Whether each name of a size that a kernel needs is itself a size of one of its tensors.

        Others become arguments of it, with which TVM cannot fuse.
        """
        sizes = [size for shape in shapes for size in shape]
        used = [*needed, *(v for size in sizes for v in tirx.analysis.undefined_vars(size))]
        return all(any(v.same_as(size) for size in sizes) for v in used)

    def _symbols_in(
        self, sizes: Sequence[tirx.Expr], element: Callable[..., tirx.Expr], inputs: Sequence[relax.Expr]
    ) -> list[tirx.Var]:
        """Names of sizes that an element needs: TVM finds those in shapes alone."""
        tensors = [te.placeholder([_int64(n) for n in self.shape(x)], self.dtype(x)) for x in inputs]
        index = [tirx.Var(f"i{axis}", "int64") for axis in range(len(sizes))]
        used = tirx.analysis.undefined_vars(tirx.convert(element(*tensors, *index)))
        return [symbol for symbol in self.symbols.values() if any(symbol.same_as(v) for v in used)]

    def call(
        self, key: Hashable, make: Callable[[], tirx.PrimFunc], inputs: Sequence[relax.Expr], shape: Sequence[Any],
        dtype: str = "float32",
    ) -> relax.Expr:  # fmt: skip
        """The result of one of our kernels, which is made once for each key."""
        if key not in self._kernels:
            self._kernels[key] = self.block.add_func(make(), _name(key))
        kind = relax.TensorType([_int64(size) for size in shape], dtype)
        return self.emit(relax.op.call_tir(self._kernels[key], relax.Tuple(list(inputs)), kind))

    # ---- small things that everything needs ------------------------------------------------------------------------

    def reshape(self, x: relax.Expr, shape: Sequence[Any]) -> relax.Expr:
        """The same elements in another shape."""
        if len(shape) == len(self.shape(x)) and all(map(known.same, shape, self.shape(x))):
            return x
        return self.emit(relax.op.reshape(x, [_int64(size) for size in shape]))

    def cast(self, x: relax.Expr, dtype: str) -> relax.Expr:
        """Converted to a type."""
        return x if self.dtype(x) == dtype else self.emit(relax.op.astype(x, dtype))

    def transpose(self, x: relax.Expr, axes: Sequence[int] | None) -> relax.Expr:
        """Axes in another order."""
        if axes is None or list(axes) == sorted(axes):
            return x
        return self.emit(relax.op.permute_dims(x, list(axes)))

    def resize(self, x: relax.Expr, axis: int, size: int) -> relax.Expr:
        """The first ``size`` elements along an axis, or zeros behind what is there."""
        shape = self.shape(x)
        have = shape[axis]
        if have == size:
            return x
        shape[axis] = size

        def element(t: te.Tensor, *index: Any) -> tirx.Expr:
            if size < have:
                return t[index]
            return tirx.if_then_else(index[axis] < have, t[index], tirx.const(0, self.dtype(x)))

        return self.compute(shape, element, "resize", x)

    @staticmethod
    def shape(x: relax.Expr) -> list[Any]:
        """Sizes, integers where they are."""
        return [known.simplify(size) for size in x.ty.shape]

    @staticmethod
    def dtype(x: Value) -> str:
        """The name of the type of the elements."""
        if isinstance(x, np.ndarray):
            found = (v for v in x.reshape(-1) if isinstance(v, tirx.Expr)) if x.dtype == object else ()
            return next((str(v.ty.dtype) for v in found), "int64") if x.dtype == object else str(x.dtype)
        return str(x.ty.dtype.dtype)


def _int64(size: Any) -> tirx.Expr:
    return tirx.const(int(size), "int64") if isinstance(size, int | np.integer) else size


def _substitute(expression: tirx.Expr, symbols: dict[tirx.Var, tirx.Var]) -> tirx.Expr:
    if not symbols:
        return expression
    return tvm_ffi.structural_map(expression, (tirx.Var, lambda v: symbols.get(v, v)), order="post")


def _position(index: Sequence[Any], shape: Sequence[int]) -> Any:
    position: Any = 0
    for i, size in zip(index, shape, strict=True):
        position = position * size + i
    return position


def _identifier(name: str) -> str:
    clean = "".join(c if c.isalnum() else "_" for c in name)
    return clean if clean[:1].isalpha() else f"v_{clean}"


def _name(key: Hashable) -> str:
    parts = key if isinstance(key, tuple) else (key,)
    return _identifier("_".join(str(getattr(part, "name", part)) for part in parts))
