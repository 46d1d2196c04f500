"""Convolutions and pools."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from tvm import relax, tirx

from qcompile.backends.relax import known
from qcompile.backends.relax.builder import Builder, Value
from qcompile.backends.relax.operators.products import multiply
from qcompile.backends.relax.operators.registry import operator, refuse

__all__: list[str] = []


def _window(
    g: Builder, node: ir.Node, x: relax.Expr, kernel: list[int]
) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations, and what to pad."""
    spatial = len(kernel)
    strides = list(node.attributes.get_ints("strides", (1,) * spatial))
    dilations = list(node.attributes.get_ints("dilations", (1,) * spatial))
    pads = list(node.attributes.get_ints("pads", (0,) * (2 * spatial)))
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = _same_pads(node, g.shape(x)[2:], kernel, strides, dilations, upper=auto == "SAME_UPPER")
    return strides, dilations, pads


def _same_pads(
    node: ir.Node, sizes: list[Any], kernel: list[int], strides: list[int], dilations: list[int], *, upper: bool
) -> list[int]:
    if not all(isinstance(n, int) for n in sizes):
        raise refuse(node, "automatic padding needs fixed sizes")
    totals = [
        max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return small + large if upper else large + small


@operator("Conv")
def _conv(g: Builder, node: ir.Node, x: Value, weight: Value, bias: Value | None = None) -> relax.Expr:
    x, weight = g.tensor(x), g.tensor(weight)
    kernel = g.shape(weight)[2:]
    op = {1: relax.op.nn.conv1d, 2: relax.op.nn.conv2d, 3: relax.op.nn.conv3d}.get(len(kernel))
    if op is None:
        raise refuse(node, f"{len(kernel)} spatial axes are not supported")
    strides, dilations, pads = _window(g, node, x, kernel)
    groups = node.attributes.get_int("group", 1)
    if groups == 1 and not g.lanes.threads and g.dtype(x) == "float32":
        out = _as_product(g, node, x, weight, (strides, dilations, pads))
    else:
        out = g.emit(op(x, weight, strides, pads, dilations, groups))
    return out if bias is None else _add_channels(g, out, g.tensor(bias))


def _as_product(
    g: Builder, node: ir.Node, x: relax.Expr, weight: relax.Expr, window: tuple[list[int], list[int], list[int]]
) -> relax.Expr:
    """The weight ``[outputs, channels · kernel]`` times the columns ``[batch, channels · kernel, places]``."""
    (batch, channels, *sizes), (outputs, _, *kernel) = g.shape(x), g.shape(weight)
    strides, dilations, pads = window
    lows, highs = pads[: len(kernel)], pads[len(kernel) :]
    places = [
        known.simplify(tirx.floordiv(known.expression(n + low + high - (k - 1) * d - 1), s) + 1)
        for n, k, s, d, low, high in zip(sizes, kernel, strides, dilations, lows, highs, strict=True)
    ]
    zero = tirx.const(0, "float32")

    def element(t: Any, b: Any, c: Any, *index: Any) -> tirx.Expr:
        taps, at = index[: len(kernel)], index[len(kernel) :]
        own = [p * s + k * d - low for p, k, s, d, low in zip(at, taps, strides, dilations, lows, strict=True)]
        inside = [c for i, n, low, high in zip(own, sizes, lows, highs, strict=True)
                  for c in ([i >= 0] if low else []) + ([i < n] if high else [])]  # fmt: skip
        value = t[(b, c, *own)]
        return tirx.if_then_else(tirx.all(*inside), value, zero) if inside else value

    depth = known.product([channels, *kernel])
    if all(n == 1 for n in (*kernel, *strides)) and not any(pads):
        columns = x
    else:
        columns = g.compute([batch, channels, *kernel, *places], element, "columns", x)
    columns = g.reshape(columns, [batch, depth, known.product(places)])
    out = multiply(g, node, g.reshape(weight, [1, outputs, depth]), columns)
    return g.reshape(out, [batch, outputs, *places])


def _add_channels(g: Builder, x: relax.Expr, bias: relax.Expr) -> relax.Expr:
    return g.compute(g.shape(x), lambda t, b, *i: t[i] + b[i[1]], "bias", x, bias)


@operator("ConvTranspose")
def _conv_transpose(g: Builder, node: ir.Node, x: Value, weight: Value, bias: Value | None = None) -> relax.Expr:
    x, weight = g.tensor(x), g.tensor(weight)
    kernel = g.shape(weight)[2:]
    op = {1: relax.op.nn.conv1d_transpose, 2: relax.op.nn.conv2d_transpose}.get(len(kernel))
    if op is None or "output_shape" in node.attributes:
        raise refuse(node, "only one or two spatial axes without a given output shape are supported")
    strides, dilations, pads = _window(g, node, x, kernel)
    extra = list(node.attributes.get_ints("output_padding", (0,) * len(kernel)))
    out = g.emit(op(x, weight, strides, pads, extra, dilations, node.attributes.get_int("group", 1)))
    return out if bias is None else _add_channels(g, out, g.tensor(bias))


@operator("MaxPool", "AveragePool")
def _pool(g: Builder, node: ir.Node, x: Value) -> relax.Expr:
    x, kernel = g.tensor(x), list(node.attributes.get_ints("kernel_shape"))
    name = "max_pool" if node.op_type == "MaxPool" else "avg_pool"
    op = getattr(relax.op.nn, f"{name}{len(kernel)}d")
    strides, dilations, pads = _window(g, node, x, kernel)
    counted = (
        {}
        if node.op_type == "MaxPool"
        else {"count_include_pad": bool(node.attributes.get_int("count_include_pad", 0))}
    )
    return g.emit(op(x, kernel, strides, pads, dilations, bool(node.attributes.get_int("ceil_mode", 0)), **counted))
