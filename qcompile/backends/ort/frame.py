"""The frame of every product of a linear site: axes, type and padding before it; scale, bias and axes after it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from qcompile.analysis.forms import Convolution, Linear, Stack
from qcompile.backends.ort.activations import pad_function
from qcompile.backends.ort.emitter import Emitter
from qcompile.ir.required import producer_of, sizes_of

__all__ = ["again", "cast", "cut", "graph_type", "prepare", "resize", "transpose", "whole_codes", "wrap"]


def graph_type(weight: ir.Value) -> ir.DataType:
    """The type that the graph computes in, at a site."""
    return weight.dtype or ir.DataType.FLOAT


def prepare(emit: Emitter, site: Linear | Stack | Convolution, types: Sequence[ir.DataType]) -> ir.Value:
    """The input with the contracted axis last, of one of ``types`` (else cast to the first).

    Sites that read the same value share it.
    """
    x, node = site.x, site.node
    if site.before is not None:
        x = emit.shared(("axes", x, site.before), partial(transpose, emit, node, x, site.before))
    if graph_type(site.weight) not in types:
        x = emit.shared(("cast", x, types[0]), partial(cast, emit, node, x, types[0]))
    return x


def transpose(emit: Emitter, node: ir.Node, x: ir.Value, axes: Sequence[int]) -> ir.Value:
    """The value with its channels last."""
    return emit.op(node, "Transpose", x, perm=axes, hint=f"{x.name}/channels_last")


def cast(emit: Emitter, node: ir.Node, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    """The value in another type."""
    return emit.op(node, "Cast", x, to=int(dtype), hint=f"{x.name}/{dtype.name.lower()}")


def whole_codes(emit: Emitter, node: ir.Node, x: ir.Value) -> Sequence[ir.Value]:
    """The codes of a tensor as it comes, in unsigned bytes, their scale and their zero point; sites share them."""

    def made() -> ir.Value:
        names = [f"{x.name}/{part}" for part in ("codes", "scale", "zero_point")]
        return emit.ops(node, "DynamicQuantizeLinear", x, outputs=names)[0]

    return producer_of(emit.shared(("whole", x), made)).outputs


def resize(emit: Emitter, node: ir.Node, x: ir.Value, size: int, have: int, want: int) -> ir.Value:
    """``x``, of ``size`` elements along its last axis and zeros up to ``have``, with zeros up to ``want``."""
    if have > want:
        x, have = emit.shared(("cut", x, size), partial(cut, emit, node, x, size)), size
    if have < want:
        x = emit.shared(("pad", x, want), partial(_pad, emit, node, x, want - have))
    return x


def again(emit: Emitter, node: ir.Node, weight: ir.Value) -> ir.Value:
    """A weight that another site reads too, as a constant of this one once the model is loaded.

    Where onnxruntime is asked for exact sums on x86 without VNNI, it makes unsigned codes of each weight, and fails at
    one that it has made them of. It makes one of operators that are equal, so each takes the rows up to an end of its
    own, all of them behind the last.
    """
    bounds = (0, sizes_of(weight)[0] + len(weight.uses()), 0)
    return emit.op(node, "Slice", weight, *(emit.constant(f"qcompile.{n}", np.array([n], np.int64)) for n in bounds))


def cut(emit: Emitter, node: ir.Node, x: ir.Value, size: int) -> ir.Value:
    """The first elements along the last axis."""
    bounds = (emit.constant(f"qcompile.{n}", np.array([n], np.int64)) for n in (0, size, -1))
    return emit.op(node, "Slice", x, *bounds, hint=f"{x.name}/cut")


def _pad(emit: Emitter, node: ir.Node, x: ir.Value, count: int) -> ir.Value:
    return emit.call(node, emit.define(pad_function), x, count=[count], hint=f"{x.name}/padded")


def wrap(emit: Emitter, site: Linear, y: ir.Value, computed: ir.DataType) -> ir.Value:
    """The product in the graph's type, scaled, with bias, axes in the operator's order."""
    node, dtype = site.node, graph_type(site.weight)
    if computed != dtype:
        y = emit.op(node, "Cast", y, to=int(dtype))
    if site.alpha != 1:
        y = emit.op(node, "Mul", y, _scalar(emit, site.alpha, dtype))
    if site.bias is not None and site.beta != 0:
        bias = site.bias if site.beta == 1 else emit.op(node, "Mul", site.bias, _scalar(emit, site.beta, dtype))
        y = emit.op(node, "Add", y, bias)
    return y if site.after is None else emit.op(node, "Transpose", y, perm=site.after)


def _scalar(emit: Emitter, value: float, dtype: ir.DataType) -> ir.Value:
    return emit.constant(f"qcompile.{value}", ir.tensor(np.array(value, dtype.numpy())))
