"""Norms, of the standard and of our own domain."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, tirx

from qcompile.backends.relax import known
from qcompile.backends.relax.builder import Builder, Value
from qcompile.backends.relax.kernels.rows import layer_norm, rms_norm
from qcompile.backends.relax.operators.elementwise import binary
from qcompile.backends.relax.operators.registry import operator, refuse
from qcompile.ir.functions import DOMAIN

__all__: list[str] = []


def _rows(g: Builder, node: ir.Node, x: relax.Expr, axis: int) -> tuple[relax.Expr, int]:
    """``[m, n]`` with the normalized axes last."""
    shape = g.shape(x)
    axis %= len(shape)
    size = known.product(shape[axis:])
    if not isinstance(size, int):
        raise refuse(node, "the normalized axes are dynamic")
    return g.reshape(x, [known.product(shape[:axis]), size]), size


def _norm(
    g: Builder,
    node: ir.Node,
    x: Value,
    scale: Value | None,
    shift: Value | None,
    epsilon: float,
    axis: int,
    center: bool,
) -> relax.Expr:
    """Computed in float32, as the standard's ``stash_type`` says."""
    x = g.tensor(x)
    dtype, shape = g.dtype(x), g.shape(x)
    rows, size = _rows(g, node, g.cast(x, "float32"), axis)
    wide = [v for v in (scale, shift) if v is not None and known.product(g.shape(g.tensor(v))) not in (1, size)]
    if wide:  # of more axes than are normalized
        out = _norm(g, node, x, None, None, epsilon, axis, center)
        out = out if scale is None else binary(g, node, relax.op.multiply, lambda a, b: a * b, out, scale)
        return out if shift is None else binary(g, node, relax.op.add, lambda a, b: a + b, out, shift)
    ones = np.ones(size, np.float32) if scale is None else scale
    vectors = [_vector(g, ones, size)]
    if center:
        vectors.append(_vector(g, np.zeros(size, np.float32) if shift is None else shift, size))
    if g.lanes.threads:
        out = _composed(g, rows, vectors, epsilon, size)
    else:
        make = layer_norm if center else rms_norm
        key = (make.__name__, size, epsilon)
        out = g.call(key, lambda: make(g.lanes, size, epsilon), [rows, *vectors], g.shape(rows))
    return g.cast(g.reshape(out, shape), dtype)


def _vector(g: Builder, value: Value, size: int) -> relax.Expr:
    vector = g.cast(g.tensor(value), "float32")
    if known.product(g.shape(vector)) == size:
        return g.reshape(vector, [size])
    single = g.reshape(vector, [1])
    return g.compute([size], lambda t, i: t[tirx.const(0, "int64")], "spread", single)


def _composed(g: Builder, x: relax.Expr, vectors: list[relax.Expr], epsilon: float, size: int) -> relax.Expr:
    """Of TVM's own operators, which it schedules for a GPU."""
    if len(vectors) == 2:
        return g.emit(relax.op.nn.layer_norm(x, *vectors, axes=[-1], epsilon=epsilon))
    return g.emit(relax.op.nn.rms_norm(x, vectors[0], axes=[-1], epsilon=epsilon))


@operator("LayerNormalization")
def _layer_norm(g: Builder, node: ir.Node, x: Value, scale: Value, shift: Value | None = None) -> relax.Expr:
    axis, epsilon = node.attributes.get_int("axis", -1), node.attributes.get_float("epsilon", 1e-5)
    return _norm(g, node, x, scale, shift, epsilon, axis, True)


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def _rms_norm(g: Builder, node: ir.Node, x: Value, scale: Value) -> relax.Expr:
    axis, epsilon = node.attributes.get_int("axis", -1), node.attributes.get_float("epsilon", 1e-5)
    return _norm(g, node, x, scale, None, epsilon, axis, False)


def _number(node: ir.Node, value: Value) -> float:
    if not isinstance(value, np.ndarray):
        raise refuse(node, "its epsilon depends on data")
    return float(value.reshape(-1)[0])


@operator("LayerNorm", domain=DOMAIN)
def _our_layer_norm(g: Builder, node: ir.Node, x: Value, scale: Value, shift: Value, epsilon: Value) -> relax.Expr:
    return _norm(g, node, x, scale, shift, _number(node, epsilon), -1, True)


@operator("RMSNorm", domain=DOMAIN)
def _our_rms_norm(g: Builder, node: ir.Node, x: Value, scale: Value, epsilon: Value) -> relax.Expr:
    return _norm(g, node, x, scale, None, _number(node, epsilon), -1, False)


@operator("GroupNormalization", "InstanceNormalization")
def _group_norm(g: Builder, node: ir.Node, x: Value, scale: Value, shift: Value) -> relax.Expr:
    x = g.tensor(x)
    shape = g.shape(x)
    groups = node.attributes.get_int("num_groups", shape[1])
    size = known.product(shape[2:]) * (shape[1] // groups)
    rows = g.reshape(x, [known.product([shape[0], groups]), size])
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    out = g.reshape(_standardized(g, rows, size, epsilon), shape)
    return _channels(g, out, g.tensor(scale), g.tensor(shift), shape[1] // g.shape(g.tensor(scale))[0])


def _standardized(g: Builder, rows: relax.Expr, size: Any, epsilon: float) -> relax.Expr:
    dtype = g.dtype(rows)
    count = tirx.const(float(size), dtype) if isinstance(size, int) else tirx.Cast(dtype, size)
    total = g.emit(relax.op.sum(rows, [1]))
    centered = g.compute(g.shape(rows), lambda t, s, i, j: t[i, j] - s[i] / count, "center", rows, total)
    squares = g.emit(relax.op.sum(g.emit(relax.op.multiply(centered, centered)), [1]))
    return g.compute(
        g.shape(rows),
        lambda t, s, i, j: t[i, j] / tirx.sqrt(s[i] / count + tirx.const(epsilon, dtype)), "standardize",
        centered, squares,
    )  # fmt: skip


def _channels(g: Builder, x: relax.Expr, scale: relax.Expr, shift: relax.Expr, per: int) -> relax.Expr:
    """Scale and shift along the second axis; ``per`` channels share a value."""
    return g.compute(
        g.shape(x), lambda t, a, b, *i: t[i] * a[tirx.floordiv(i[1], per)] + b[tirx.floordiv(i[1], per)], "affine",
        x, scale, shift,
    )  # fmt: skip


@operator("BatchNormalization")
def _batch_norm(
    g: Builder, node: ir.Node, x: Value, scale: Value, shift: Value, mean: Value, variance: Value
) -> relax.Expr:
    x = g.tensor(x)
    epsilon = tirx.const(node.attributes.get_float("epsilon", 1e-5), g.dtype(x))
    vectors = [g.tensor(v) for v in (scale, shift, mean, variance)]

    def element(t: Any, a: Any, b: Any, m: Any, v: Any, *i: Any) -> tirx.Expr:
        return (t[i] - m[i[1]]) / tirx.sqrt(v[i[1]] + epsilon) * a[i[1]] + b[i[1]]

    return g.compute(g.shape(x), element, "batch_norm", x, *vectors)
