"""Operators that carry a memory along time: caches, causal convolutions, linear attention."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.analysis.axes import Mode, Ref, complete
from qcompile.analysis.rules.attention import split_heads
from qcompile.analysis.rules.elementwise import carry, is_one
from qcompile.analysis.rules.linear import add_channel_bias, contract
from qcompile.analysis.spaces import Analysis, rule
from qcompile.ir.graph import label
from qcompile.ir.required import optional
from qcompile.transforms.freedom import Freedom

__all__: list[str] = []


@rule("TensorScatter")
def write_cache(analysis: Analysis, node: ir.Node) -> None:
    """Puts new entries into a cache along one axis, for each sequence at a place of its own."""
    refs, new = (list(analysis.refs(value)) for value in node.inputs[:2])
    axis = node.attributes.get_int("axis", -2) % len(refs)
    for i, (ref, update) in enumerate(zip(refs, new, strict=True)):
        if i == axis:
            for side in (ref, update):
                analysis.axes.constrain(side, Freedom.NONE, f"{label(node)} writes along it")
        else:
            analysis.axes.unify(ref, update, f"{label(node)} writes one into the other")
    if optional(node, 2) is not None:
        analysis.axes.constrain(refs[0], Freedom.DIAGONAL, f"{label(node)} has a place for each sequence")
    analysis.set(node.outputs[0], refs)


@rule("CausalConvWithState")
def causal(analysis: Analysis, node: ir.Node) -> None:
    """A depthwise convolution along time with the entries before the first: a scale goes into the kernel."""
    x, weight = (list(analysis.refs(value)) for value in node.inputs[:2])
    past, reason = analysis.refs_or_none(optional(node, 3)), label(node)
    channels = carry(analysis, x[1], weight[0], reason)
    if optional(node, 2) is not None:
        add_channel_bias(analysis, node, channels, analysis.refs(node.inputs[2])[0], x[:1])
    for ref in (x[2], weight[2], *(past[2:] if past else ())):
        analysis.axes.constrain(ref, Freedom.NONE, f"{reason} slides over it")
    for mine, theirs in zip(x[:2], past or (), strict=False):
        analysis.axes.unify(mine, theirs, f"{reason} goes on from it")
    if node.attributes.get_string("activation", "none") != "none":
        for ref in (x[0], channels):
            analysis.axes.constrain(ref, Freedom.PERMUTATION, f"{reason} acts on each element")
    width = analysis.axes.size(weight[2])
    length = analysis.axes.frozen(None if width is None else width - 1, f"{reason} keeps the last entries")
    analysis.set(node.outputs[0], [x[0], channels, x[2]])
    for output in node.outputs[1:]:
        analysis.set(output, [x[0], x[1], length])


@rule("LinearAttention")
def linear_attention(analysis: Analysis, node: ir.Node) -> None:
    """``S = exp(g) S + β k (v − Sᵀk)ᵀ``, ``o = Sᵀq``: values are linear, keys but for decays and delta rules."""
    queries, shared = (node.attributes.get_int(f"{side}_num_heads", 0) for side in ("q", "kv"))
    reason = label(node)
    heads = [
        split_heads(analysis, analysis.refs(v), n, reason)
        for v, n in zip(node.inputs[:3], (queries, shared, shared), strict=True)
    ]
    parts = heads[0] and analysis.axes.as_product(heads[0][1], [shared, queries // shared], reason)
    operands = complete(heads)
    if operands is None or not parts:
        analysis.opaque(node, f"{reason} has heads that cannot be followed")
        return
    query, key, value = operands
    for ref in (query[0], parts[0], *key[:2], *value[:2]):  # queries of one key are linear
        analysis.axes.constrain(ref, Freedom.PERMUTATION, f"{reason} treats each head of each sequence by itself")
    for operand in (key, value):
        analysis.axes.unify(query[0], operand[0], f"{reason} treats each sequence by itself")
        analysis.axes.unify(parts[0], operand[1], f"{reason} shares keys and values among heads")
    for ref, kept in ((query[2], Freedom.DIAGONAL), (key[2], Freedom.NONE), (value[2], Freedom.NONE)):
        analysis.axes.constrain(ref, kept, f"{reason} steps through time")
    contract(analysis, query[3], key[3], reason)
    if "delta" in node.attributes.get_string("update_rule", "gated_delta"):
        analysis.axes.constrain(key[3], Freedom.ORTHOGONAL, f"{reason} takes away what the key reads")
    for index in (4, 5):
        _decided(analysis, node, optional(node, index), key, query[0])
    past = analysis.refs_or_none(optional(node, 3))
    state = [query[0], key[1], key[3], value[3]]
    for mine, theirs in zip(state, past or (), strict=False):
        analysis.axes.unify(mine, theirs, f"{reason} goes on from it")
    analysis.set(node.outputs[0], [query[0], query[2], analysis.axes.product([query[1], value[3]])])
    for output in node.outputs[1:]:
        analysis.set(output, state)


def _decided(analysis: Analysis, node: ir.Node, value: ir.Value | None, key: tuple[Ref, ...], batch: Ref) -> None:
    """Decays and rates: one for each head, or for each entry of a key."""
    refs = analysis.refs_or_none(value)
    if refs is None:
        return
    reason = f"{label(node)} decays by it"
    analysis.axes.constrain(refs[1], Freedom.NONE, reason)
    analysis.axes.unify(batch, refs[0], reason)
    size, heads = analysis.axes.size(refs[2]), analysis.axes.size(key[1])
    if size == heads:
        analysis.axes.unify(key[1], refs[2], reason)
    elif not is_one(analysis, refs[2]):
        parts = analysis.axes.as_product(refs[2], [heads, (size or 0) // heads], reason) if heads else None
        for ref, own in zip(parts or (), (key[1], key[3]), strict=False):
            analysis.axes.unify(ref, own.through(Mode.PLAIN), reason)
        if parts is None:
            analysis.freeze([value, *node.inputs[:2]], reason)
