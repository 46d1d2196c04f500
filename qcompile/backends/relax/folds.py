"""Operators on what is known while compiling: NumPy computes them, also on arrays of sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import tirx

from qcompile.backends.relax import known

__all__ = ["fold"]

#: Arrays of more elements are computed by the artifact.
LIMIT = 4096


def fold(node: ir.Node, inputs: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """The result of an operator on known values, or ``None`` where it is left to the artifact."""
    rule = _FOLD.get(node.op_type) if node.domain == "" else None
    if rule is None or any(v is not None and v.size > LIMIT for v in inputs):
        return None
    try:
        result = rule(node, *inputs)
    except (known.Undecided, TypeError, AttributeError):  # a function of NumPy that has no meaning for expressions
        return None
    if result is None:
        return None
    array = _array(result)
    return None if array.size > LIMIT else known.tidy(array)


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
    def one(a: known.Size, b: known.Size) -> bool:
        if not isinstance(a, tirx.Expr) and not isinstance(b, tirx.Expr):
            return bool(plain(a, b))
        return known.prove(symbolic(known.expression(a), known.expression(b)))

    decide = np.vectorize(one, otypes=[bool])
    return lambda node, a, b: decide(a, b)


def _divide(node: ir.Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if np.issubdtype(a.dtype, np.floating):
        return a / b
    divide = np.vectorize(lambda x, y: known.quotient([x], [y]) if not isinstance(x, int) else x // y, otypes=[object])
    return divide(a.astype(object), b.astype(object))


def _modulo(node: ir.Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype != object and b.dtype != object:
        return (np.fmod if node.attributes.get_int("fmod", 0) else np.mod)(a, b).astype(a.dtype)
    rest = tirx.truncmod if node.attributes.get_int("fmod", 0) else tirx.floormod
    return np.vectorize(lambda x, y: known.simplify(rest(*map(known.expression, (x, y)))), otypes=[object])(a, b)


def _pick(larger: bool) -> _Fold:
    def choose(a: known.Size, b: known.Size) -> known.Size:
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
    return tuple(int(v) for v in (node.attributes.get_ints("axes", ()) if given is None else given))


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
    return np.vectorize(lambda v: tirx.Cast(str(dtype), known.expression(v)), otypes=[object])(x)


def _where(node: ir.Node, condition: np.ndarray, yes: np.ndarray, no: np.ndarray) -> np.ndarray:
    if object in (yes.dtype, no.dtype):
        yes, no = yes.astype(object), no.astype(object)
    return np.where(condition, yes, no)


def _transpose(node: ir.Node, x: np.ndarray) -> np.ndarray:
    return np.transpose(x, node.attributes.get_ints("perm", None))


def _constant_of_shape(node: ir.Node, shape: np.ndarray) -> np.ndarray | None:
    if shape.dtype == object or np.prod(shape) > LIMIT:
        return None
    value = node.attributes.get_tensor("value")
    value = np.zeros(1, np.float32) if value is None else value.numpy()
    return np.full(shape, value.reshape(()), value.dtype)


def _one_hot(node: ir.Node, index: np.ndarray, depth: np.ndarray, values: np.ndarray) -> np.ndarray | None:
    if object in (index.dtype, depth.dtype) or node.attributes.get_int("axis", -1) != -1:
        return None
    count = int(depth.reshape(-1)[0])
    hit = np.arange(count) == np.expand_dims(index % count, -1)
    return np.where(hit, values[1], values[0])


def _range(node: ir.Node, start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> np.ndarray | None:
    constant = all(v.dtype != object for v in (start, limit, delta))
    return np.arange(start, limit, delta, start.dtype) if constant else None


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
    "Reciprocal": _numbers(np.reciprocal), "Exp": _numbers(np.exp), "Log": _numbers(np.log), "Mod": _modulo,
    "Equal": _compare(operator.eq, tirx.EQ), "Less": _compare(operator.lt, tirx.LT),
    "LessOrEqual": _compare(operator.le, tirx.LE), "Greater": _compare(operator.gt, tirx.GT),
    "GreaterOrEqual": _compare(operator.ge, tirx.GE),
    "And": _plain(np.logical_and), "Or": _plain(np.logical_or), "Not": _plain(np.logical_not),
    "Slice": _slice, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Reshape": _reshape, "Gather": _gather,
    "OneHot": _one_hot,
    "Cast": _cast, "Where": _where, "Transpose": _transpose, "Range": _range, "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "ReduceProd": _reduce(np.prod), "ReduceSum": _reduce(np.sum), "Identity": _plain(lambda x: x),
    "Flatten": lambda node, x: x.reshape(1, -1) if node.attributes.get_int("axis", 1) == 0 else None,
    "Size": lambda node, x: np.asarray(x.size), "Shape": lambda node, x: np.array(x.shape, np.int64),
}  # fmt: skip
