"""Arithmetic on what is known while compiling: constants, and integers made of the sizes of dynamic axes.

A known value is a NumPy array. One of dtype ``object`` holds Python integers and TVM expressions of sizes, so that
``Shape``, ``Gather``, ``Concat`` and the like need no code of their own: NumPy does them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import tvm
from tvm import tirx

__all__ = ["Undecided", "fold", "prove", "quotient", "same", "simplify", "tidy"]

#: Arrays of more elements are computed by the artifact.
LIMIT = 4096

Size = Any  # int or tirx.Expr


class Undecided(Exception):
    """A question about sizes whose answer depends on them."""


_ANALYZER = tvm.sym.Analyzer()


def bound(symbol: tirx.Var) -> None:
    """Tell that a size is positive."""
    _ANALYZER.update(symbol, tvm.sym.ConstIntBound(1, 1 << 40))


def simplify(size: Size) -> Size:
    """An integer where the expression is one."""
    if isinstance(size, int | np.integer):
        return int(size)
    simple = _ANALYZER.simplify(size)
    return int(simple) if isinstance(simple, tirx.IntImm) else simple


def same(a: Size, b: Size) -> bool:
    """Whether two sizes are equal whatever the symbols are."""
    return simplify(a - b) == 0 if not (isinstance(a, int) and isinstance(b, int)) else a == b


def prove(condition: Any) -> bool:
    """Whether a condition holds or fails for all sizes.

    Raises:
        Undecided: if that depends.
    """
    if isinstance(condition, bool | np.bool_ | int):
        return bool(condition)
    if _ANALYZER.can_prove(condition):
        return True
    if _ANALYZER.can_prove(tirx.Not(condition)):
        return False
    raise Undecided


def product(sizes: Sequence[Size]) -> Size:
    """Of all."""
    return simplify(math.prod(sizes)) if sizes else 1


def quotient(whole: Sequence[Size], parts: Sequence[Size]) -> Size:
    """The product of some sizes over that of others, which divides it: what a -1 of Reshape stands for."""
    count, symbols = _factors(whole)
    divisor, others = _factors(parts)
    for other in list(others):
        found = next((i for i, symbol in enumerate(symbols) if same(symbol, other)), None)
        if found is not None:
            symbols.pop(found)
            others.remove(other)
    if not others and count % divisor == 0:
        return product([count // divisor, *symbols])
    return simplify(tirx.floordiv(product([count, *symbols]), product([divisor, *others])))


def _factors(sizes: Sequence[Size]) -> tuple[int, list[Size]]:
    """The integer and the symbolic factors of a product."""
    count, symbols = 1, []
    queue = list(sizes)
    while queue:
        size = queue.pop()
        if isinstance(size, int | np.integer | tirx.IntImm):
            count *= int(size)
        elif isinstance(size, tirx.Mul):
            queue += [size.a, size.b]
        else:
            symbols.append(size)
    return count, symbols


def tidy(array: np.ndarray) -> np.ndarray:
    """Simplified; a plain int64 array where nothing symbolic is left."""
    if array.dtype != object:
        return array
    flat = [simplify(v) if not isinstance(v, float) else v for v in array.reshape(-1)]
    if all(isinstance(v, bool) for v in flat) and flat:
        return np.array(flat, bool).reshape(array.shape)
    if all(isinstance(v, int) for v in flat):
        return np.array(flat, np.int64).reshape(array.shape)
    out = np.empty(len(flat), object)
    out[:] = flat
    return out.reshape(array.shape)


# ---- operators ---------------------------------------------------------------------------------------------------


def fold(node: ir.Node, inputs: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """The result of an operator on known values, or ``None`` where it is left to the artifact."""
    rule = _FOLD.get(node.op_type) if node.domain == "" else None
    if rule is None or any(v is not None and v.size > LIMIT for v in inputs):
        return None
    try:
        result = rule(node, *inputs)
    except (Undecided, TypeError, AttributeError):  # a function of NumPy that has no meaning for expressions
        return None
    if result is None:
        return None
    array = _array(result)
    return None if array.size > LIMIT else tidy(array)


def _array(result: Any) -> np.ndarray:
    """NumPy returns bare objects for arrays without axes."""
    if not isinstance(result, tirx.Expr):
        return np.asarray(result)
    array = np.empty((), object)
    array[()] = result
    return array


_Fold = Callable[..., "np.ndarray | None"]


def _plain(function: Callable[..., Any]) -> _Fold:
    return lambda node, *inputs: function(*inputs)


def _numbers(function: Callable[..., Any]) -> _Fold:
    """For constants alone."""

    def compute(node: ir.Node, *inputs: np.ndarray) -> np.ndarray | None:
        return None if any(v.dtype == object for v in inputs) else function(*inputs).astype(inputs[0].dtype)

    return compute


def _compare(plain: Callable[[Any, Any], Any], symbolic: Callable[[Any, Any], Any]) -> _Fold:
    def one(a: Size, b: Size) -> bool:
        if not isinstance(a, tirx.Expr) and not isinstance(b, tirx.Expr):
            return bool(plain(a, b))
        return prove(symbolic(*(v if isinstance(v, tirx.Expr) else tirx.const(int(v), "int64") for v in (a, b))))

    decide = np.vectorize(one, otypes=[bool])
    return lambda node, a, b: decide(a, b)


def _divide(node: ir.Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if np.issubdtype(a.dtype, np.floating):
        return a / b
    divide = np.vectorize(lambda x, y: quotient([x], [y]) if not isinstance(x, int) else x // y, otypes=[object])
    return divide(a.astype(object), b.astype(object))


def _pick(larger: bool) -> _Fold:
    def choose(a: Size, b: Size) -> Size:
        if isinstance(a, int) and isinstance(b, int):
            return max(a, b) if larger else min(a, b)
        return (tirx.max if larger else tirx.min)(a, b)

    def compute(node: ir.Node, *inputs: np.ndarray) -> np.ndarray:
        result = inputs[0]
        for other in inputs[1:]:
            if result.dtype != object and other.dtype != object:
                result = (np.maximum if larger else np.minimum)(result, other)
            else:
                result = np.vectorize(choose, otypes=[object])(result.astype(object), other.astype(object))
        return result

    return compute


def _slice(node: ir.Node, x: np.ndarray, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> np.ndarray:
    starts, ends = ([int(v) for v in part] for part in (starts, ends))
    axes = range(len(starts)) if axes is None else [int(v) for v in axes]
    steps = [1] * len(starts) if steps is None else [int(v) for v in steps]
    where = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        where[axis] = slice(start, None if step < 0 and end < -size else end, step)
    return x[tuple(where)]


def _axes(node: ir.Node, given: np.ndarray | None) -> tuple[int, ...]:
    found = node.attributes.get_ints("axes", ()) if given is None else given
    return tuple(int(v) for v in found)


def _squeeze(node: ir.Node, x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    return np.squeeze(x, _axes(node, axes) or None)


def _unsqueeze(node: ir.Node, x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    return np.expand_dims(x, _axes(node, axes))


def _reshape(node: ir.Node, x: np.ndarray, shape: np.ndarray) -> np.ndarray | None:
    return None if shape.dtype == object or (shape == 0).any() else x.reshape(shape)


def _gather(node: ir.Node, x: np.ndarray, index: np.ndarray) -> np.ndarray | None:
    return None if index.dtype == object else np.take(x, index, node.attributes.get_int("axis", 0))


def _cast(node: ir.Node, x: np.ndarray) -> np.ndarray | None:
    dtype = ir.DataType(node.attributes.get_int("to")).numpy()
    if x.dtype != object:
        return x.astype(dtype)
    if np.issubdtype(dtype, np.integer):
        return x
    return np.vectorize(
        lambda v: tirx.Cast(str(dtype), tirx.const(v, "int64") if isinstance(v, int) else v), otypes=[object]
    )(x)


def _where(node: ir.Node, condition: np.ndarray, yes: np.ndarray, no: np.ndarray) -> np.ndarray:
    return (
        np.where(condition, yes.astype(object), no.astype(object))
        if object in (yes.dtype, no.dtype)
        else np.where(condition, yes, no)
    )


def _transpose(node: ir.Node, x: np.ndarray) -> np.ndarray:
    return np.transpose(x, node.attributes.get_ints("perm", None))


def _constant_of_shape(node: ir.Node, shape: np.ndarray) -> np.ndarray | None:
    if shape.dtype == object or np.prod(shape) > LIMIT:
        return None
    value = node.attributes.get_tensor("value")
    value = np.zeros(1, np.float32) if value is None else value.numpy()
    return np.full(shape, value.reshape(()), value.dtype)


def _range(node: ir.Node, start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> np.ndarray | None:
    if any(v.dtype == object for v in (start, limit, delta)):
        return None
    return np.arange(start, limit, delta, start.dtype)


def _reduce(function: Callable[..., Any]) -> _Fold:
    def compute(node: ir.Node, x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
        found = _axes(node, axes)
        return function(x, axis=found or None, keepdims=bool(node.attributes.get_int("keepdims", 1)))

    return compute


def _concat(node: ir.Node, *inputs: np.ndarray) -> np.ndarray:
    if any(v.dtype == object for v in inputs):
        inputs = tuple(v.astype(object) for v in inputs)
    return np.concatenate(inputs, node.attributes.get_int("axis"))


_FOLD: dict[str, _Fold] = {
    "Add": _plain(np.add), "Sub": _plain(np.subtract), "Mul": _plain(np.multiply), "Div": _divide,
    "Neg": _plain(np.negative), "Abs": _plain(np.abs), "Min": _pick(False), "Max": _pick(True),
    "Sqrt": _numbers(np.sqrt), "Floor": _numbers(np.floor), "Ceil": _numbers(np.ceil), "Pow": _numbers(np.power),
    "Reciprocal": _numbers(np.reciprocal), "Exp": _numbers(np.exp), "Log": _numbers(np.log), "Mod": _numbers(np.mod),
    "Equal": _compare(operator.eq, tirx.EQ), "Less": _compare(operator.lt, tirx.LT),
    "LessOrEqual": _compare(operator.le, tirx.LE), "Greater": _compare(operator.gt, tirx.GT),
    "GreaterOrEqual": _compare(operator.ge, tirx.GE),
    "And": _plain(np.logical_and), "Or": _plain(np.logical_or), "Not": _plain(np.logical_not),
    "Slice": _slice, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Reshape": _reshape, "Gather": _gather,
    "Cast": _cast, "Where": _where, "Transpose": _transpose, "Range": _range, "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "ReduceProd": _reduce(np.prod), "ReduceSum": _reduce(np.sum), "Identity": _plain(lambda x: x),
    "Flatten": lambda node, x: x.reshape(1, -1) if node.attributes.get_int("axis", 1) == 0 else None,
    "Size": lambda node, x: np.asarray(x.size), "Shape": lambda node, x: np.array(x.shape, np.int64),
}  # fmt: skip
