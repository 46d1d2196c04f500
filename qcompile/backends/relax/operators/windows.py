"""Convolutions and pools."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, tirx

from qcompile.backends.relax import known
from qcompile.backends.relax.builder import Builder, Value
from qcompile.backends.relax.operators.products import multiply
from qcompile.backends.relax.operators.registry import operator, refuse

__all__: list[str] = []


def _window(g: Builder, node: ir.Node, x: relax.Expr, kernel: list[int]) -> tuple[list[int], list[int], list[int]]:
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
    window = strides, dilations, pads = _window(g, node, x, kernel)
    groups = node.attributes.get_int("group", 1)
    if groups == 1 and not g.lanes.threads and g.dtype(x) == "float32":
        out = _as_product(g, node, x, weight, window)
    elif g.shape(weight)[1] == 1 and known.product(kernel) <= _MOST_TAPS:
        out = _channel_by_channel(g, x, weight, window)
    else:
        out = g.emit(op(x, weight, strides, pads, dilations, groups))
    return out if bias is None else _add_channels(g, out, g.tensor(bias))


#: Taps of a kernel that are written out one by one.
_MOST_TAPS = 64

_Window = tuple[list[int], list[int], list[int]]


def _places(sizes: list[Any], kernel: list[int], window: _Window) -> list[Any]:
    """Sizes of the result."""
    strides, dilations, pads = window
    ends = zip(sizes, kernel, strides, dilations, pads[: len(kernel)], pads[len(kernel) :], strict=True)
    return [
        known.simplify(tirx.floordiv(known.expression(n + low + high - (k - 1) * d - 1), s) + 1)
        for n, k, s, d, low, high in ends
    ]


def _padded(t: Any, lead: tuple[Any, ...], own: list[Any], sizes: list[Any], pads: list[int]) -> tirx.Expr:
    """An element of the input, or the zero beside it."""
    ends = zip(own, sizes, pads[: len(own)], pads[len(own) :], strict=True)
    inside = [c for i, n, low, high in ends for c in ([i >= 0] if low else []) + ([i < n] if high else [])]
    value = t[(*lead, *own)]
    return tirx.if_then_else(tirx.all(*inside), value, tirx.const(0, t.dtype)) if inside else value


def _as_product(g: Builder, node: ir.Node, x: relax.Expr, weight: relax.Expr, window: _Window) -> relax.Expr:
    """The weight ``[outputs, channels · kernel]`` times the columns ``[batch, channels · kernel, places]``."""
    (batch, channels, *sizes), (outputs, _, *kernel) = g.shape(x), g.shape(weight)
    strides, dilations, pads = window
    places, depth = _places(sizes, kernel, window), known.product([channels, *kernel])

    def element(t: Any, b: Any, c: Any, *index: Any) -> tirx.Expr:
        taps, at = index[: len(kernel)], index[len(kernel) :]
        own = [p * s + k * d - low for p, k, s, d, low in zip(at, taps, strides, dilations, pads, strict=False)]
        return _padded(t, (b, c), own, sizes, pads)

    points = all(n == 1 for n in (*kernel, *strides)) and not any(pads)
    columns = x if points else g.compute([batch, channels, *kernel, *places], element, "columns", x)
    columns = g.reshape(columns, [batch, depth, known.product(places)])
    out = multiply(g, node, g.reshape(weight, [1, outputs, depth]), columns)
    return g.reshape(out, [batch, outputs, *places])


def _channel_by_channel(g: Builder, x: relax.Expr, weight: relax.Expr, window: _Window) -> relax.Expr:
    """Every output reads one channel: its taps are written out, for LLVM to make vectors along the last axis."""
    (batch, channels, *sizes), (outputs, _, *kernel) = g.shape(x), g.shape(weight)
    strides, dilations, pads = window
    count, zero = len(kernel), tirx.const(0, "int64")
    if any(pads):
        wide = [known.simplify(n + low + high) for n, low, high in zip(sizes, pads[:count], pads[count:], strict=True)]
        lows = pads[:count]
        x = g.compute([batch, channels, *wide], lambda t, b, c, *i: _padded(
            t, (b, c), [at - low for at, low in zip(i, lows, strict=True)], sizes, pads), "pad", x)  # fmt: skip

    def element(t: Any, w: Any, b: Any, o: Any, *at: Any) -> tirx.Expr:
        total: Any = tirx.const(0, t.dtype)
        for taps in np.ndindex(*kernel):
            own = [p * s + k * d for p, k, s, d in zip(at, taps, strides, dilations, strict=True)]
            total = total + t[(b, tirx.floordiv(o, outputs // channels), *own)] * w[(o, zero, *taps)]
        return total

    return g.compute([batch, outputs, *_places(sizes, kernel, window)], element, "taps", x, weight)


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
    padding = bool(node.attributes.get_int("count_include_pad", 0))
    counted = {} if node.op_type == "MaxPool" else {"count_include_pad": padding}
    if not padding:  # some models ask for windows that are far larger than what they look at
        ends = zip(kernel, g.shape(x)[2:], pads[: len(kernel)], pads[len(kernel) :], dilations, strict=True)
        kernel = [min(k, n + low + high) if isinstance(n, int) and d == 1 else k for k, n, low, high, d in ends]
    return g.emit(op(x, kernel, strides, pads, dilations, bool(node.attributes.get_int("ceil_mode", 0)), **counted))
