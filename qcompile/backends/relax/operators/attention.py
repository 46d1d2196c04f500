"""Attention and rotary embeddings."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from tvm import relax, tirx

from qcompile.backends.relax import known
from qcompile.backends.relax.builder import Builder, Value
from qcompile.backends.relax.operators.elementwise import elementwise
from qcompile.backends.relax.operators.products import multiply, times
from qcompile.backends.relax.operators.reductions import softmax_last
from qcompile.backends.relax.operators.registry import operator, refuse
from qcompile.backends.relax.operators.shaping import join

__all__: list[str] = []


@operator("Attention")
def _attention(
    g: Builder, node: ir.Node, q: Value, k: Value, v: Value, mask: Value | None = None, past_k: Value | None = None,
    past_v: Value | None = None, lengths: Value | None = None,
) -> list[relax.Expr]:  # fmt: skip
    """Attention of opset 23, and the keys and values that it saw: with a cache, grouped heads, a mask, causality."""
    if lengths is not None:
        raise refuse(node, "lengths that are not padded are not supported")
    q, k, v = (g.tensor(x) for x in (q, k, v))
    flat = len(g.shape(q)) == 3
    if flat:
        heads = node.attributes.get_int("q_num_heads", 0), node.attributes.get_int("kv_num_heads", 0)
        q, k, v = (_heads(g, x, n) for x, n in zip((q, k, v), (heads[0], heads[1], heads[1]), strict=True))
    batch, heads, length, width = g.shape(q)
    before = 0
    if past_k is not None:
        before = g.shape(g.tensor(past_k))[2]
        k, v = (join(g, [g.tensor(old), new], 2) for old, new in ((past_k, k), (past_v, v)))
    seen = [k, v]
    scale = node.attributes.get_float("scale", float(width) ** -0.5)
    k, v = (_repeated(g, x, heads) for x in (k, v))
    scores = multiply(g, node, times(g, q, scale), k, transposed=True)
    cap = node.attributes.get_float("softcap", 0.0)
    if cap:
        scores = times(g, g.emit(relax.op.tanh(times(g, scores, 1 / cap))), cap)
    if node.attributes.get_int("is_causal", 0):
        scores = _causal(g, scores, before)
    if mask is not None:
        scores = _masked(g, node, scores, g.tensor(mask))
    out = multiply(g, node, softmax_last(g, scores, guarded=mask is not None), v)
    if not flat:
        return [out, *seen]
    merged = g.transpose(out, [0, 2, 1, 3])
    return [g.reshape(merged, [batch, length, known.product([heads, g.shape(v)[-1]])]), *seen]


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


def _causal(g: Builder, scores: relax.Expr, before: Any) -> relax.Expr:
    """A query sees what stands before it, and all of the ``before`` positions of the cache."""
    low = tirx.const(-float("inf"), g.dtype(scores))

    def element(t: Any, b: Any, h: Any, i: Any, j: Any) -> tirx.Expr:
        return tirx.Select(j <= i + before, t[b, h, i, j], low)

    return g.compute(g.shape(scores), element, "causal", scores)


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
