"""Operators that multiply matrices."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from tvm import relax, tirx

from qcompile.backends.relax import known
from qcompile.backends.relax.builder import Builder, Value
from qcompile.backends.relax.kernels.matmul import Product, matmul
from qcompile.backends.relax.operators.elementwise import binary
from qcompile.backends.relax.operators.registry import operator
from qcompile.ir.graph import static

__all__ = ["multiply", "times"]


def multiply(g: Builder, node: ir.Node, a: relax.Expr, b: relax.Expr, *, transposed: bool = False) -> relax.Expr:
    """``a @ b`` by ONNX's rules; ``transposed`` swaps the last two axes of ``b``. At least two axes each."""
    if g.lanes.threads or g.dtype(a) != "float32":
        rank = len(g.shape(b))
        b = g.transpose(b, [*range(rank - 2), rank - 1, rank - 2]) if transposed else b
        return g.emit(relax.op.matmul(a, b))
    left, right = g.shape(a), g.shape(b)
    k, n = (right[-1], right[-2]) if transposed else (right[-2], right[-1])
    lead, shared = _batch(g, node, left[:-2], right[:-2])
    if shared[1]:  # one matrix for all: the batch is more rows
        rows = g.reshape(a, [1, known.product(left[:-1]), left[-1]])
        out = _product(g, rows, g.reshape(b, [1, *right[-2:]]), k, n, transposed, (False, True))
        return g.reshape(out, [*left[:-1], n])
    batch = known.product(lead)
    a = g.reshape(_spread(g, a, lead, shared[0]), [1 if shared[0] else batch, *left[-2:]])
    b = g.reshape(_spread(g, b, lead, False), [batch, *right[-2:]])
    return g.reshape(_product(g, a, b, k, n, transposed, (shared[0], False)), [*lead, left[-2], n])


def _batch(g: Builder, node: ir.Node, left: list[Any], right: list[Any]) -> tuple[list[Any], tuple[bool, bool]]:
    """The batch axes of a product, and which operand has none of its own."""

    def alone(sizes: list[Any]) -> bool:
        return all(isinstance(n, int) and n == 1 for n in sizes)

    if alone(right) and len(right) <= len(left):
        return left, (False, True)
    rank = max(len(left), len(right))
    pairs = zip([1] * (rank - len(left)) + left, [1] * (rank - len(right)) + right, strict=True)
    return [m if isinstance(n, int) and n == 1 else n for m, n in pairs], (alone(left), False)


def _spread(g: Builder, x: relax.Expr, lead: list[Any], keep: bool) -> relax.Expr:
    """Batch axes repeated to ``lead``."""
    shape = g.shape(x)
    own = [1] * (len(lead) - len(shape) + 2) + shape[:-2]
    if keep or all(map(known.same, own, lead)):
        return x
    x = g.reshape(x, [*own, *shape[-2:]])

    def element(t: Any, *index: Any) -> tirx.Expr:
        outer = [
            tirx.const(0, "int64") if isinstance(n, int) and n == 1 else i for i, n in zip(index, own, strict=False)
        ]
        return t[(*outer, *index[len(own) :])]

    return g.compute([*lead, *shape[-2:]], element, "spread", x)


def _product(
    g: Builder, a: relax.Expr, b: relax.Expr, k: Any, n: Any, transposed: bool, shared: tuple[bool, bool]
) -> relax.Expr:
    form = Product(static(k), static(n), transposed, *shared)
    batch, m, _ = g.shape(a)
    if shared[0]:
        batch = g.shape(b)[0]
    return g.call(("matmul", form), lambda: matmul(g.lanes, form), [a, b], [batch, m, n])


@operator("MatMul")
def _matmul(g: Builder, node: ir.Node, a: Value, b: Value) -> relax.Expr:
    a, b = g.tensor(a), g.tensor(b)
    left, right = g.shape(a), g.shape(b)
    a = g.reshape(a, [1, *left]) if len(left) == 1 else a
    b = g.reshape(b, [*right, 1]) if len(right) == 1 else b
    out = multiply(g, node, a, b)
    shape = g.shape(out)
    if len(right) == 1:
        shape = shape[:-1]
    if len(left) == 1:
        shape = [*shape[: len(shape) - (1 if len(right) == 1 else 2)], *([] if len(right) == 1 else shape[-1:])]
    return g.reshape(out, shape)


@operator("Gemm")
def _gemm(g: Builder, node: ir.Node, a: Value, b: Value, c: Value | None = None) -> relax.Expr:
    a, b = g.tensor(a), g.tensor(b)
    if node.attributes.get_int("transA", 0):
        a = g.transpose(a, [1, 0])
    out = multiply(g, node, a, b, transposed=bool(node.attributes.get_int("transB", 0)))
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    if alpha != 1:
        out = times(g, out, alpha)
    if c is None or beta == 0:
        return out
    c = g.tensor(c) if beta == 1 else times(g, g.tensor(c), beta)
    return binary(g, node, relax.op.add, lambda x, y: x + y, out, c)


def times(g: Builder, x: relax.Expr, factor: float) -> relax.Expr:
    """``factor · x``."""
    return g.emit(relax.op.multiply(x, relax.const(factor, g.dtype(x))))


@operator("Einsum")
def _einsum(g: Builder, node: ir.Node, *inputs: Value) -> relax.Expr:
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    return g.emit(relax.op.einsum(relax.Tuple([g.tensor(v) for v in inputs]), equation))
