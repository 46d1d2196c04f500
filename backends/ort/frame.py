"""What every kernel for a linear site has around its product: axes, type, padding before; scale, bias, axes after."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from qcompile.backends.ort.activations import pad_function
from qcompile.backends.ort.emitter import Emitter
from qcompile.backends.ort.sites import Linear

__all__ = ["graph_type", "prepare", "scalar", "wrap"]


def graph_type(weight: ir.Value) -> ir.DataType:
    """The type that the graph computes in, at a site."""
    return weight.dtype or ir.DataType.FLOAT


def scalar(emit: Emitter, value: float, dtype: ir.DataType) -> ir.Value:
    """A constant of the graph's type."""
    return emit.constant("scalar", ir.tensor(np.array(value, dtype.numpy())))


def prepare(emit: Emitter, site: Linear, width: int, types: Sequence[ir.DataType]) -> ir.Value:
    """The input with the contracted axis last, zero-padded to ``width``, of one of ``types`` (else the first).

    Sites that read the same value share it.
    """
    x, node = site.x, site.node
    if site.before is not None:
        key = ("transpose", x, site.before)
        x = emit.shared(key, lambda v=x: emit.op(node, "Transpose", v, perm=site.before, hint=f"{v.name}/last"))
    if graph_type(site.weight) not in types:
        key = ("cast", x, types[0])
        x = emit.shared(key, lambda v=x: emit.op(node, "Cast", v, to=int(types[0]), hint=f"{v.name}/float"))
    return _padded(emit, site, x, width)


def _padded(emit: Emitter, site: Linear, x: ir.Value, width: int) -> ir.Value:
    size = _inputs(site)
    if width == size:
        return x
    pad = emit.define(pad_function)
    make: Callable[[], ir.Value] = lambda: emit.call(  # noqa: E731
        site.node, pad, x, count=[width - size], hint=f"{x.name}/padded"
    )
    return emit.shared(("pad", x, width), make)


def wrap(emit: Emitter, site: Linear, y: ir.Value, computed: ir.DataType) -> ir.Value:
    """The product in the graph's type, scaled, with bias, axes in the operator's order."""
    node, dtype = site.node, graph_type(site.weight)
    if computed != dtype:
        y = emit.op(node, "Cast", y, to=int(dtype))
    if site.alpha != 1:
        y = emit.op(node, "Mul", y, scalar(emit, site.alpha, dtype))
    if site.bias is not None and site.beta != 0:
        bias = site.bias
        if site.beta != 1:
            bias = emit.op(node, "Mul", bias, scalar(emit, site.beta, dtype))
        y = emit.op(node, "Add", y, bias)
    return y if site.after is None else emit.op(node, "Transpose", y, perm=site.after)
