"""Operators that make tensors of sizes and constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, tirx

from qcompile.backends.relax import known
from qcompile.backends.relax.builder import Builder, Value
from qcompile.backends.relax.operators.registry import operator, refuse
from qcompile.backends.relax.operators.shaping import sizes_of

__all__: list[str] = []


@operator("Range")
def _range(g: Builder, node: ir.Node, start: Value, limit: Value, delta: Value) -> relax.Expr:
    first, last, step = (_whole(node, v) for v in (start, limit, delta))
    dtype = g.dtype(start)
    if not isinstance(step, int) or step == 0:
        raise refuse(node, "only whole steps are supported")
    span = last - first if step > 0 else first - last
    count = known.simplify(span if abs(step) == 1 else (span + abs(step) - 1) // abs(step))
    return g.compute([count], lambda i: tirx.Cast(dtype, first + i * step), "range")


def _whole(node: ir.Node, value: Value) -> Any:
    """A bound of a range: an integer or a size, whatever type it has in the graph."""
    if not isinstance(value, np.ndarray):
        raise refuse(node, "its bounds depend on data")
    bound = value.reshape(-1)[0]
    if isinstance(bound, tirx.Cast):
        bound = bound.value
    if not isinstance(bound, tirx.Expr) and bound != int(bound):
        raise refuse(node, "only whole numbers are supported")
    return known.simplify(bound if isinstance(bound, tirx.Expr) else int(bound))


@operator("ConstantOfShape")
def _constant_of_shape(g: Builder, node: ir.Node, shape: Value) -> relax.Expr:
    given = node.attributes.get_tensor("value", None)
    value = np.zeros(1, np.float32) if given is None else given.numpy()
    sizes = sizes_of(node, shape, "sizes")
    return g.compute(sizes, lambda *index: tirx.const(value.reshape(-1)[0].item(), str(value.dtype)), "fill")


@operator("Constant")
def _constant(g: Builder, node: ir.Node) -> np.ndarray:
    value = ir.convenience.get_const_tensor(node.outputs[0])
    if value is None:
        raise refuse(node, "its value is not known")
    return value.numpy()
