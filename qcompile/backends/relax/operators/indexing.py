"""Operators that read or write elements at positions held in tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, tirx

from qcompile.backends.relax import known
from qcompile.backends.relax.builder import Builder, Value
from qcompile.backends.relax.kernels.scatter import scatter_rows
from qcompile.backends.relax.operators.registry import operator, refuse

__all__: list[str] = []


def _wrapped(index: tirx.Expr, size: Any) -> tirx.Expr:
    """A negative index counts from the end."""
    index = tirx.Cast("int64", index)
    return tirx.Select(index < 0, index + size, index)


@operator("Gather")
def _gather(g: Builder, node: ir.Node, x: Value, indices: Value) -> relax.Expr:
    x = g.tensor(x)
    shape = g.shape(x)
    axis = node.attributes.get_int("axis", 0) % len(shape)
    if isinstance(indices, np.ndarray) and indices.ndim == 0:
        place = indices.item()
        place = place + shape[axis] if isinstance(place, int) and place < 0 else place
        kept = shape[:axis] + shape[axis + 1 :]
        return g.compute(kept, lambda t, *index: t[(*index[:axis], place, *index[axis:])], "gather", x)
    indices = g.tensor(indices)
    among = g.shape(indices)
    target = shape[:axis] + among + shape[axis + 1 :]

    def element(t: Any, positions: Any, *index: Any) -> tirx.Expr:
        inner = index[axis : axis + len(among)]
        return t[(*index[:axis], _wrapped(positions[inner], shape[axis]), *index[axis + len(among) :])]

    return g.compute(target, element, "gather", x, indices)


@operator("GatherElements")
def _gather_elements(g: Builder, node: ir.Node, x: Value, indices: Value) -> relax.Expr:
    x, indices = g.tensor(x), g.tensor(indices)
    shape = g.shape(x)
    axis = node.attributes.get_int("axis", 0) % len(shape)

    def element(t: Any, positions: Any, *index: Any) -> tirx.Expr:
        return t[(*index[:axis], _wrapped(positions[index], shape[axis]), *index[axis + 1 :])]

    return g.compute(g.shape(indices), element, "gather_elements", x, indices)


@operator("GatherND")
def _gather_nd(g: Builder, node: ir.Node, x: Value, indices: Value) -> relax.Expr:
    x, indices = g.tensor(x), g.tensor(indices)
    shape, among = g.shape(x), g.shape(indices)
    lead, depth = node.attributes.get_int("batch_dims", 0), among[-1]
    if not isinstance(depth, int):
        raise refuse(node, "the length of its indices is dynamic")
    target = among[:-1] + shape[lead + depth :]

    def element(t: Any, positions: Any, *index: Any) -> tirx.Expr:
        outer, inner = index[: len(among) - 1], index[len(among) - 1 :]
        found = [_wrapped(positions[(*outer, i)], shape[lead + i]) for i in range(depth)]
        return t[(*outer[:lead], *found, *inner)]

    return g.compute(target, element, "gather_nd", x, indices)


@operator("ScatterND")
def _scatter_nd(g: Builder, node: ir.Node, x: Value, indices: Value, updates: Value) -> relax.Expr:
    """Rows of a matrix: of what the indices choose, and of what is left of each choice."""
    x, indices, updates = g.tensor(x), g.tensor(indices), g.tensor(updates)
    shape, among, reduction = g.shape(x), g.shape(indices), node.attributes.get_string("reduction", "none")
    depth = among[-1]
    if not isinstance(depth, int):
        raise refuse(node, "the length of its indices is dynamic")
    count, width = known.product(among[:-1]), known.product(shape[depth:])

    def element(t: Any, i: Any) -> tirx.Expr:
        row: Any = tirx.const(0, "int64")
        for axis in range(depth):
            row = row * shape[axis] + _wrapped(t[i, tirx.const(axis, "int64")], shape[axis])
        return row

    at = g.compute([count], element, "places", g.reshape(indices, [count, depth]))
    matrix, dtype = [known.product(shape[:depth]), width], g.dtype(x)
    arguments = [g.reshape(x, matrix), at, g.reshape(updates, [count, width])]
    key = ("scatter_rows", dtype, reduction)
    y = g.call(key, lambda: scatter_rows(g.lanes, dtype, reduction), arguments, matrix, dtype)
    return g.reshape(y, shape)


@operator("ScatterElements", "Scatter")
def _scatter_elements(g: Builder, node: ir.Node, x: Value, indices: Value, updates: Value) -> relax.Expr:
    reduction = {"none": "update", "add": "add", "mul": "mul"}.get(node.attributes.get_string("reduction", "none"))
    if reduction is None:
        raise refuse(node, "only plain updates, sums and products are supported")
    axis = node.attributes.get_int("axis", 0)
    return g.emit(relax.op.scatter_elements(g.tensor(x), g.tensor(indices), g.tensor(updates), axis, reduction))


@operator("OneHot")
def _one_hot(g: Builder, node: ir.Node, indices: Value, depth: Value, values: Value) -> relax.Expr:
    if not isinstance(depth, np.ndarray) or not isinstance(values, np.ndarray):
        raise refuse(node, "its depth or values depend on data")
    size, (off, on) = int(depth.reshape(-1)[0]), values.tolist()
    indices = g.tensor(indices)
    shape, dtype = g.shape(indices), str(values.dtype)
    axis = node.attributes.get_int("axis", -1) % (len(shape) + 1)

    def element(t: Any, *index: Any) -> tirx.Expr:
        hit = _wrapped(t[(*index[:axis], *index[axis + 1 :])], size) == index[axis]
        return tirx.Select(hit, tirx.const(on, dtype), tirx.const(off, dtype))

    return g.compute([*shape[:axis], size, *shape[axis:]], element, "one_hot", indices)


@operator("Trilu")
def _trilu(g: Builder, node: ir.Node, x: Value, k: Value | None = None) -> relax.Expr:
    x, shift = g.tensor(x), 0 if k is None else int(np.asarray(k).reshape(-1)[0])
    upper, zero = node.attributes.get_int("upper", 1), tirx.const(0, g.dtype(x))

    def element(t: Any, *index: Any) -> tirx.Expr:
        offset = index[-1] - index[-2]
        return tirx.Select(offset >= shift if upper else offset <= shift, t[index], zero)

    return g.compute(g.shape(x), element, "trilu", x)


@operator("EyeLike")
def _eye_like(g: Builder, node: ir.Node, x: Value) -> relax.Expr:
    x, k = g.tensor(x), node.attributes.get_int("k", 0)
    given = node.attributes.get_int("dtype", 0)
    dtype = str(ir.DataType(given).numpy()) if given else g.dtype(x)
    return g.compute(g.shape(x), lambda i, j: tirx.Cast(dtype, j - i == k), "eye")


@operator("TopK")
def _top_k(g: Builder, node: ir.Node, x: Value, k: Value) -> list[relax.Expr]:
    if not isinstance(k, np.ndarray) or k.dtype == object:
        raise refuse(node, "the number of elements is dynamic")
    settings = {"axis": node.attributes.get_int("axis", -1), "largest": bool(node.attributes.get_int("largest", 1))}
    found = g.emit(relax.op.topk(g.tensor(x), int(k.reshape(-1)[0]), ret_type="both", dtype="int64", **settings))
    return [g.emit(relax.TupleGetItem(found, i)) for i in range(2)]
