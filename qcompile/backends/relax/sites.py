"""Planned sites as calls of our kernels."""

from __future__ import annotations

import onnx_ir as ir
from tvm import relax

from qcompile.analysis.forms import Linear, Lookup, read_site
from qcompile.backends.relax import known
from qcompile.backends.relax.builder import Builder
from qcompile.backends.relax.kernels.linear import linear
from qcompile.backends.relax.kernels.lookup import lookup
from qcompile.backends.relax.kernels.quantize import quantize_rows, supported
from qcompile.backends.relax.operators.registry import refuse
from qcompile.backends.relax.weights import Layout, layout_of, pack_parts
from qcompile.errors import TargetError
from qcompile.formats import Format
from qcompile.ir import required
from qcompile.ir.graph import node_name
from qcompile.targets.plans import Plan

__all__ = ["check_plan", "lower_site"]


def check_plan(node: ir.Node, plan: Plan) -> None:
    """Before anything is written.

    Raises:
        TargetError: if no kernel takes the site or its formats.
    """
    read_site(node)
    weight, activation = plan.scheme.weight, plan.scheme.activation
    taken = isinstance(weight, Format) and (activation is None or supported(activation))
    if not taken:
        raise TargetError(f"TVM: no kernel for site '{node_name(node)}' in format '{plan.scheme.name}'")


def lower_site(g: Builder, node: ir.Node, plan: Plan) -> tuple[relax.Expr, str]:
    """The result of a site, and a line on how it is computed."""
    form = read_site(node)
    if isinstance(form, Lookup):
        return _lookup(g, form, plan), "rows decoded as they are looked up"
    if isinstance(form, Linear):
        return _linear(g, form, plan), "weights decoded in registers, float32 sums"
    raise refuse(node, "its stack was not split")


def _parts(g: Builder, weight: ir.Value, plan: Plan) -> tuple[Layout, list[relax.Expr]]:
    """The layout of a weight and its parameters. Equal content is stored once: tied weights."""
    import hashlib

    parts = pack_parts(plan.weight)
    digest = hashlib.sha256(repr(layout_of(plan.weight)).encode())
    for array in parts.values():
        digest.update(array.tobytes())

    def make() -> list[relax.Expr]:
        return [g.parameter(f"{required.name_of(weight)}.{part}", array) for part, array in parts.items()]

    return layout_of(plan.weight), g.shared(("weight", digest.hexdigest()), make)


def _linear(g: Builder, form: Linear, plan: Plan) -> relax.Expr:
    layout, parts = _parts(g, form.weight, plan)
    x = g.tensor(g.get(form.x))
    dtype = g.dtype(x)
    x = g.cast(g.transpose(x, form.before), "float32")
    lead = g.shape(x)[:-1]
    rows = g.shared(("rows", x, plan.scheme.activation), lambda: _rows(g, x, plan, layout.size))
    rows = g.resize(rows, 1, layout.padded_size)
    shape = [g.shape(rows)[0], layout.padded_rows]
    y = g.call(("linear", layout), lambda: linear(g.lanes, layout), [rows, *parts], shape)
    y = g.reshape(g.resize(y, 1, layout.rows), [*lead, layout.rows])
    if form.alpha != 1:
        y = g.emit(relax.op.multiply(y, relax.const(form.alpha, "float32")))
    y = g.cast(y, dtype)
    if form.bias is not None and form.beta != 0:
        y = _biased(g, form, y, dtype)
    return g.transpose(y, form.after)


def _biased(g: Builder, form: Linear, y: relax.Expr, dtype: str) -> relax.Expr:
    bias = g.cast(g.tensor(g.get(form.bias)), dtype)
    if form.beta != 1:
        bias = g.emit(relax.op.multiply(bias, relax.const(form.beta, dtype)))
    return g.emit(relax.op.add(y, bias))


def _rows(g: Builder, x: relax.Expr, plan: Plan, size: int) -> relax.Expr:
    """``[m, K]``, quantized and read back if the scheme says so; sites that read one value share it."""
    rows = g.reshape(x, [known.product(g.shape(x)[:-1]), size])
    fmt = plan.scheme.activation
    if fmt is None:
        return rows
    width = -(-size // (fmt.group or size)) * (fmt.group or size)
    rows = g.resize(rows, 1, width)
    key = ("quantize", fmt.name, width)
    return g.resize(g.call(key, lambda: quantize_rows(g.lanes, fmt, width), [rows], g.shape(rows)), 1, size)


def _lookup(g: Builder, form: Lookup, plan: Plan) -> relax.Expr:
    layout, parts = _parts(g, form.weight, plan)
    indices = g.tensor(g.get(form.indices))
    among, dtype = g.shape(indices), g.dtype(indices)
    flat = g.reshape(indices, [known.product(among)])
    key = ("lookup", layout.name, dtype)
    y = g.call(key, lambda: lookup(g.lanes, layout, dtype), [flat, *parts], [g.shape(flat)[0], layout.padded_size])
    y = g.reshape(g.resize(y, 1, layout.size), [*among, layout.size])
    names = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}
    kind = required.dtype_of(form.weight)
    return g.cast(y, names.get(kind, kind.name.lower()))
