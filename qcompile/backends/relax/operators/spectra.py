"""The discrete Fourier transform, as products with matrices of cosines and sines."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from tvm import relax, tirx

from qcompile.backends.relax import known
from qcompile.backends.relax.builder import Builder, Value
from qcompile.backends.relax.operators.products import multiply
from qcompile.backends.relax.operators.registry import operator, refuse
from qcompile.backends.relax.operators.shaping import join

__all__: list[str] = []


@operator("DFT")
def _dft(g: Builder, node: ir.Node, x: Value, length: Value | None = None, axis: Value | None = None) -> relax.Expr:
    """``[..., n, ..., 1 or 2]``, real or complex, to ``[..., n, ..., 2]``."""
    x, get = g.tensor(x), node.attributes
    rank = len(g.shape(x))
    at = get.get_int("axis", 1 if g.opset < 20 else -2) if axis is None else int(np.asarray(axis).reshape(-1)[0])
    at %= rank
    if length is not None or get.get_int("onesided", 0) != 0 or at == rank - 1:
        raise refuse(node, "a length of its own or one side alone is not supported")
    order = [i for i in range(rank) if i != at]
    order = [*order[:-1], at, order[-1]]
    x = g.transpose(x, order)
    shape = g.shape(x)
    parts = [_part(g, x, i) for i in range(shape[-1])]
    cosine, sine = (_waves(g, shape[-2], phase, g.dtype(x)) for phase in (0.0, math.pi / 2))
    inverse = bool(get.get_int("inverse", 0))
    real, imaginary = multiply(g, node, parts[0], cosine), multiply(g, node, parts[0], sine)
    imaginary = imaginary if inverse else g.emit(relax.op.negative(imaginary))
    if len(parts) > 1:
        turned = multiply(g, node, parts[1], sine)
        real = g.emit((relax.op.subtract if inverse else relax.op.add)(real, turned))
        imaginary = g.emit(relax.op.add(imaginary, multiply(g, node, parts[1], cosine)))
    out = join(g, [g.reshape(part, [*shape[:-1], 1]) for part in (real, imaginary)], rank - 1)
    if inverse:
        out = _divided(g, out, shape[-2])
    return g.transpose(out, [order.index(i) for i in range(rank)])


def _part(g: Builder, x: relax.Expr, which: int) -> relax.Expr:
    return g.compute(g.shape(x)[:-1], lambda t, *index: t[(*index, tirx.const(which, "int64"))], "part", x)


def _waves(g: Builder, size: object, phase: float, dtype: str) -> relax.Expr:
    """``cos(2π j k / n - phase)`` as a matrix; ``j k`` is taken modulo n first, which keeps the angle exact."""

    def element(j: tirx.Var, k: tirx.Var) -> tirx.Expr:
        n = known.expression(size)
        angle = tirx.Cast("float64", tirx.floormod(j * k, n)) / tirx.Cast("float64", n) * (2 * math.pi)
        return tirx.Cast(dtype, tirx.cos(angle - tirx.const(phase, "float64")))

    return g.compute([size, size], element, "waves")


def _divided(g: Builder, x: relax.Expr, size: object) -> relax.Expr:
    count = tirx.Cast(g.dtype(x), known.expression(size))
    return g.compute(g.shape(x), lambda t, *index: t[index] / count, "mean", x)
