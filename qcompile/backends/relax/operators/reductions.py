"""Operators that reduce axes or run along them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, tirx

from qcompile.backends.relax import known
from qcompile.backends.relax.builder import Builder, Value
from qcompile.backends.relax.kernels.rows import softmax
from qcompile.backends.relax.operators.registry import OPERATORS, operator, refuse
from qcompile.backends.relax.operators.shaping import axes_of

__all__ = ["softmax_last"]


def _reduce(g: Builder, node: ir.Node, x: Value, axes: Value | None = None, *, rule: Callable[..., Any]) -> relax.Expr:
    x = g.tensor(x)
    found = axes_of(g, node, axes, len(g.shape(x)))
    if not found and node.attributes.get_int("noop_with_empty_axes", 0) != 0:
        return x
    return rule(g, x, found or None, bool(node.attributes.get_int("keepdims", 1)))


def _plain(op: Callable[..., relax.Expr]) -> Callable[..., Any]:
    return lambda g, x, axes, keep: g.emit(op(x, axes, keepdims=keep))


def _after(op: Callable[..., relax.Expr], last: Callable[..., relax.Expr]) -> Callable[..., Any]:
    return lambda g, x, axes, keep: g.emit(last(g.emit(relax.op.sum(g.emit(op(x)), axes, keepdims=keep))))


def _same(x: relax.Expr) -> relax.Expr:
    return x


def _square(x: relax.Expr) -> relax.Expr:
    return relax.op.multiply(x, x)


def _mean(g: Builder, x: relax.Expr, axes: list[int] | None, keep: bool) -> relax.Expr:
    """TVM's own mean counts the elements of dynamic axes in the type of the result."""
    shape = g.shape(x)
    count = known.product([shape[a] for a in (axes or range(len(shape)))])
    total, dtype = g.emit(relax.op.sum(x, axes, keepdims=keep)), g.dtype(x)
    number = tirx.const(float(count), dtype) if isinstance(count, int) else tirx.Cast(dtype, count)
    return g.compute(g.shape(total), lambda t, *index: t[index] / number, "mean", total)


_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceSum": _plain(relax.op.sum), "ReduceMax": _plain(relax.op.max), "ReduceMin": _plain(relax.op.min),
    "ReduceProd": _plain(relax.op.prod), "ReduceMean": _mean,
    "ReduceL1": _after(relax.op.abs, _same), "ReduceL2": _after(_square, relax.op.sqrt),
    "ReduceSumSquare": _after(_square, _same), "ReduceLogSum": _after(_same, relax.op.log),
}  # fmt: skip
for _name, _rule in _REDUCTIONS.items():
    OPERATORS["", _name] = partial(_reduce, rule=_rule)


@operator("ArgMax", "ArgMin")
def _arg(g: Builder, node: ir.Node, x: Value) -> relax.Expr:
    op = relax.op.argmax if node.op_type == "ArgMax" else relax.op.argmin
    if node.attributes.get_int("select_last_index", 0):
        raise refuse(node, "the last of equal elements is not supported")
    x = g.tensor(x)
    found = op(x, node.attributes.get_int("axis", 0) % len(g.shape(x)), bool(node.attributes.get_int("keepdims", 1)))
    return g.cast(g.emit(found), "int64")


@operator("CumSum")
def _cumsum(g: Builder, node: ir.Node, x: Value, axis: Value) -> relax.Expr:
    if not isinstance(axis, np.ndarray) or node.attributes.get_int("reverse", 0) != 0:
        raise refuse(node, "only sums from the front along a constant axis are supported")
    x = g.tensor(x)
    which = int(axis.reshape(-1)[0]) % len(g.shape(x))
    exclusive = bool(node.attributes.get_int("exclusive", 0))
    return g.emit(relax.op.cumsum(x, which, g.dtype(x), exclusive))


@operator("Softmax")
def _softmax(g: Builder, node: ir.Node, x: Value) -> relax.Expr:
    x = g.tensor(x)
    shape = g.shape(x)
    if g.opset < 13:
        axis = node.attributes.get_int("axis", 1) % len(shape)
        return g.reshape(
            softmax_last(g, g.reshape(x, [known.product(shape[:axis]), known.product(shape[axis:])])), shape
        )
    axis = node.attributes.get_int("axis", -1) % len(shape)
    if axis != len(shape) - 1:
        return g.emit(relax.op.nn.softmax(x, axis))
    return softmax_last(g, x)


def softmax_last(g: Builder, x: relax.Expr, *, guarded: bool = False) -> relax.Expr:
    """Over the last axis; ``guarded`` as in the kernel."""
    shape = g.shape(x)
    if g.lanes.threads or g.dtype(x) != "float32":
        return g.emit(relax.op.nn.softmax(x, -1))
    size = shape[-1] if isinstance(shape[-1], int) else None
    rows = g.reshape(x, [known.product(shape[:-1]), shape[-1]])
    key = ("softmax", size or "", "guarded" if guarded else "plain")
    out = g.call(key, lambda: softmax(g.lanes, size, guarded=guarded), [rows], g.shape(rows))
    return g.reshape(out, shape)


@operator("LogSoftmax")
def _log_softmax(g: Builder, node: ir.Node, x: Value) -> relax.Expr:
    return g.emit(relax.op.nn.log_softmax(g.tensor(x), node.attributes.get_int("axis", -1)))


@operator("GlobalAveragePool")
def _global_average(g: Builder, node: ir.Node, x: Value) -> relax.Expr:
    x = g.tensor(x)
    return _mean(g, x, list(range(2, len(g.shape(x)))), True)
