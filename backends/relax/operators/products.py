"""Operators that multiply matrices: products, attention, convolutions."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from tvm import relax, tirx

from qcompile.backends.relax import known
from qcompile.backends.relax.builder import Builder, Value
from qcompile.backends.relax.kernels.matmul import Product, matmul
from qcompile.backends.relax.operators.elementwise import binary, elementwise
from qcompile.backends.relax.operators.registry import operator, refuse

__all__ = ["multiply"]


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
    form = Product(*(s if isinstance(s, int) else None for s in (k, n)), transposed, *shared)
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
        out = _times(g, node, out, alpha)
    if c is None or beta == 0:
        return out
    c = g.tensor(c) if beta == 1 else _times(g, node, g.tensor(c), beta)
    return binary(g, node, relax.op.add, lambda x, y: x + y, out, c)


def _times(g: Builder, node: ir.Node, x: relax.Expr, factor: float) -> relax.Expr:
    return g.emit(relax.op.multiply(x, relax.const(factor, g.dtype(x))))


@operator("Einsum")
def _einsum(g: Builder, node: ir.Node, *inputs: Value) -> relax.Expr:
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    return g.emit(relax.op.einsum(relax.Tuple([g.tensor(v) for v in inputs]), equation))


# ---- attention ---------------------------------------------------------------------------------------------------


@operator("Attention")
def _attention(
    g: Builder, node: ir.Node, q: Value, k: Value, v: Value, mask: Value | None = None, *past: Value | None
) -> relax.Expr:
    """Attention of opset 23 without a cache: three or four axes, grouped heads, a mask, causality."""
    from qcompile.backends.relax.operators.reductions import softmax_last

    unsupported = [value for value in past if value is not None] or len([o for o in node.outputs if o.name]) > 1
    if unsupported:
        raise refuse(node, "a cache or further outputs are not supported")
    q, k, v = (g.tensor(x) for x in (q, k, v))
    flat = len(g.shape(q)) == 3
    if flat:
        heads = node.attributes.get_int("q_num_heads", 0), node.attributes.get_int("kv_num_heads", 0)
        q, k, v = (_heads(g, x, n) for x, n in zip((q, k, v), (heads[0], heads[1], heads[1]), strict=True))
    batch, heads, length, width = g.shape(q)
    scale = node.attributes.get_float("scale", float(width) ** -0.5)
    k, v = (_repeated(g, x, heads) for x in (k, v))
    scores = multiply(g, node, _times(g, node, q, scale), k, transposed=True)
    cap = node.attributes.get_float("softcap", 0.0)
    if cap:
        scores = _times(g, node, g.emit(relax.op.tanh(_times(g, node, scores, 1 / cap))), cap)
    if node.attributes.get_int("is_causal", 0):
        scores = _causal(g, scores)
    if mask is not None:
        scores = _masked(g, node, scores, g.tensor(mask))
    out = multiply(g, node, softmax_last(g, scores, guarded=mask is not None), v)
    if not flat:
        return out
    merged = g.transpose(out, [0, 2, 1, 3])
    return g.reshape(merged, [batch, length, known.product([heads, g.shape(v)[-1]])])


def _heads(g: Builder, x: relax.Expr, heads: int) -> relax.Expr:
    batch, length, width = g.shape(x)
    return g.transpose(g.reshape(x, [batch, length, heads, width // heads]), [0, 2, 1, 3])


def _repeated(g: Builder, x: relax.Expr, heads: int) -> relax.Expr:
    """Each head for the consecutive query heads that share it."""
    shape = g.shape(x)
    times = heads // shape[1]
    if times == 1:
        return x
    return g.compute([shape[0], heads, *shape[2:]], lambda t, b, h, i, j: t[b, h // times, i, j], "repeat", x)


def _causal(g: Builder, scores: relax.Expr) -> relax.Expr:
    low = tirx.const(-float("inf"), g.dtype(scores))
    return g.compute(g.shape(scores), lambda t, b, h, i, j: tirx.Select(j <= i, t[b, h, i, j], low), "causal", scores)


def _masked(g: Builder, node: ir.Node, scores: relax.Expr, mask: relax.Expr) -> relax.Expr:
    low = tirx.const(-float("inf"), g.dtype(scores))
    if g.dtype(mask) == "bool":
        return elementwise(g, node, lambda s, m: tirx.Select(m, s, low), scores, mask)
    return elementwise(g, node, lambda s, m: s + m, scores, mask)


@operator("RotaryEmbedding")
def _rotary(g: Builder, node: ir.Node, x: Value, cos: Value, sin: Value, positions: Value | None = None) -> relax.Expr:
    """RotaryEmbedding of opset 23."""
    x, cos, sin = g.tensor(x), g.tensor(cos), g.tensor(sin)
    whole = g.shape(x)
    if len(whole) == 3:
        x = _heads(g, x, node.attributes.get_int("num_heads"))
    width = g.shape(x)[-1]
    rotated = node.attributes.get_int("rotary_embedding_dim", 0) or width
    half, mixed = rotated // 2, bool(node.attributes.get_int("interleaved", 0))
    where = [] if positions is None else [g.tensor(positions)]

    def element(t: Any, c: Any, s: Any, *rest: Any) -> tirx.Expr:
        b, h, i, j = rest[len(where) :]
        pair = tirx.floordiv(j, 2) if mixed else tirx.floormod(j, half)
        pair = tirx.min(pair, tirx.const(half - 1, "int64"))
        at = (tirx.Cast("int64", rest[0][b, i]), pair) if where else (b, i, pair)
        first = tirx.floormod(j, 2) == 0 if mixed else j < half
        other = tirx.Select(first, j + (1 if mixed else half), j - (1 if mixed else half))
        partner = t[b, h, i, tirx.max(tirx.min(other, tirx.const(width - 1, "int64")), tirx.const(0, "int64"))]
        turned = t[b, h, i, j] * c[at] + tirx.Select(first, -partner, partner) * s[at]
        return tirx.Select(j < rotated, turned, t[b, h, i, j])

    out = g.compute(g.shape(x), element, "rotary", x, cos, sin, *where)
    return g.reshape(g.transpose(out, [0, 2, 1, 3]), whole) if len(whole) == 3 else out


# ---- convolutions and pools --------------------------------------------------------------------------------------


def _window(
    g: Builder, node: ir.Node, x: relax.Expr, kernel: list[int]
) -> tuple[relax.Expr, list[int], list[int], list[int]]:
    """The padded input, strides, dilations and what to pad is done."""
    spatial = len(kernel)
    strides = list(node.attributes.get_ints("strides", (1,) * spatial))
    dilations = list(node.attributes.get_ints("dilations", (1,) * spatial))
    pads = list(node.attributes.get_ints("pads", (0,) * (2 * spatial)))
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = _same_pads(node, g.shape(x)[2:], kernel, strides, dilations, upper=auto == "SAME_UPPER")
    return x, strides, dilations, pads


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
    x, strides, dilations, pads = _window(g, node, x, kernel)
    groups = node.attributes.get_int("group", 1)
    out = g.emit(op(x, weight, strides, pads, dilations, groups))
    return out if bias is None else _add_channels(g, out, g.tensor(bias))


def _add_channels(g: Builder, x: relax.Expr, bias: relax.Expr) -> relax.Expr:
    return g.compute(g.shape(x), lambda t, b, *i: t[i] + b[i[1]], "bias", x, bias)


@operator("ConvTranspose")
def _conv_transpose(g: Builder, node: ir.Node, x: Value, weight: Value, bias: Value | None = None) -> relax.Expr:
    x, weight = g.tensor(x), g.tensor(weight)
    kernel = g.shape(weight)[2:]
    op = {1: relax.op.nn.conv1d_transpose, 2: relax.op.nn.conv2d_transpose}.get(len(kernel))
    if op is None or "output_shape" in node.attributes:
        raise refuse(node, "only one or two spatial axes without a given output shape are supported")
    x, strides, dilations, pads = _window(g, node, x, kernel)
    extra = list(node.attributes.get_ints("output_padding", (0,) * len(kernel)))
    out = g.emit(op(x, weight, strides, pads, extra, dilations, node.attributes.get_int("group", 1)))
    return out if bias is None else _add_channels(g, out, g.tensor(bias))


@operator("MaxPool", "AveragePool")
def _pool(g: Builder, node: ir.Node, x: Value) -> relax.Expr:
    x, kernel = g.tensor(x), list(node.attributes.get_ints("kernel_shape"))
    name = "max_pool" if node.op_type == "MaxPool" else "avg_pool"
    op = getattr(relax.op.nn, f"{name}{len(kernel)}d")
    x, strides, dilations, pads = _window(g, node, x, kernel)
    counted = (
        {}
        if node.op_type == "MaxPool"
        else {"count_include_pad": bool(node.attributes.get_int("count_include_pad", 0))}
    )
    return g.emit(op(x, kernel, strides, pads, dilations, bool(node.attributes.get_int("ceil_mode", 0)), **counted))
