"""State-space operators of our own domain."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.backends.relax.builder import Builder, Value
from qcompile.backends.relax.kernels.scan import selective_scan, state_space_duality
from qcompile.backends.relax.operators.registry import operator
from qcompile.ir.functions import DOMAIN

__all__: list[str] = []


@operator("SelectiveScan", domain=DOMAIN)
def _selective_scan(g: Builder, node: ir.Node, *inputs: Value) -> object:
    tensors = [g.tensor(v) for v in inputs]
    dtype, shape = g.dtype(tensors[0]), g.shape(tensors[0])
    channels, state = g.shape(tensors[2])
    key = ("selective_scan", channels, state)
    tensors = [g.cast(v, "float32") for v in tensors]
    return g.cast(g.call(key, lambda: selective_scan(g.lanes, channels, state), tensors, shape), dtype)


@operator("StateSpaceDuality", domain=DOMAIN)
def _duality(g: Builder, node: ir.Node, *inputs: Value) -> object:
    tensors = [g.tensor(v) for v in inputs]
    dtype, shape = g.dtype(tensors[0]), g.shape(tensors[0])
    sizes = (*shape[2:], *g.shape(tensors[3])[2:])
    tensors = [g.cast(v, "float32") for v in tensors]
    key = ("state_space_duality", *sizes)
    return g.cast(g.call(key, lambda: state_space_duality(g.lanes, *sizes), tensors, shape), dtype)
