"""Fused attention operators: scores contract queries with keys, values are mixed over positions."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.axes import Ref
from qcompile.freedom import Freedom
from qcompile.rules.linear import contract, is_weight
from qcompile.spaces import Analysis, Site, label, rule

__all__ = ["rotary_axis"]


def _heads(analysis: Analysis, refs: list[Ref], count: int, reason: str) -> tuple[Ref, Ref, Ref, Ref] | None:
    """(batch, heads, positions, head_dim) of a 4-D or 3-D operand."""
    if len(refs) == 4:
        return refs[0], refs[1], refs[2], refs[3]
    size = analysis.axes.size(refs[-1])
    if len(refs) != 3 or size is None or not count or size % count:
        return None
    parts = analysis.axes.as_product(refs[2], [count, size // count], reason)
    return None if parts is None else (refs[0], parts[0], refs[1], parts[1])


def _attend(analysis: Analysis, node: ir.Node, query: tuple, key: tuple, value: tuple) -> tuple[Ref, Ref] | None:
    """Join the axes of queries, keys and values; returns the heads and head_dim of the result."""
    axes, reason = analysis.axes, label(node)
    contract(analysis, query[3], key[3], reason)
    for ref in (query[2], key[2], value[2]):
        axes.constrain(ref, Freedom.NONE, f"{reason} masks positions")
    if None in (axes.size(query[1]), axes.size(key[1])):
        return None
    shared = axes.size(key[1])
    parts = axes.as_product(query[1], [shared, axes.size(query[1]) // shared], reason)
    if parts is None:
        return None
    for ref in (parts[0], parts[1], key[1], value[1]):
        axes.constrain(ref, Freedom.PERMUTATION, f"{reason} treats each head by itself")
    axes.unify(parts[0], key[1], f"{reason} shares keys among heads")
    axes.unify(parts[0], value[1], f"{reason} shares values among heads")
    return query[1], value[3]


def _caches(analysis: Analysis, node: ir.Node, key: tuple, value: tuple, inputs: tuple, outputs: tuple) -> None:
    """Past and present keys and values ``[batch, heads, length, head_dim]`` share the basis of the new ones."""
    held = [v for i, v in enumerate(node.inputs) if i in inputs]
    made = [v for i, v in enumerate(node.outputs) if i in outputs]
    for (_, heads, _, dim), past in zip((key, value), held, strict=False):
        refs = analysis.refs(past)
        if refs is not None and len(refs) == 4:
            analysis.axes.unify(heads, refs[1], f"{label(node)} appends to its cache")
            analysis.axes.unify(dim, refs[3], f"{label(node)} appends to its cache")
    for (size, heads, _, dim), present in zip((key, value), made, strict=False):
        analysis.set(present, [size, heads, analysis.axes.fresh(None), dim])


@rule("Attention")
def attention(analysis: Analysis, node: ir.Node) -> None:
    """The operator of opset 23: 3-D or 4-D operands, grouped-query heads, optional cache."""
    queries, keys = (node.attributes.get_int(f"{side}_num_heads", 0) for side in ("q", "kv"))
    counts = (queries, keys, keys)
    operands = [
        _heads(analysis, list(analysis.refs(v)), n, label(node)) for v, n in zip(node.inputs[:3], counts, strict=True)
    ]
    joined = None if None in operands else _attend(analysis, node, *operands)
    if joined is None:
        analysis.opaque(node, f"{label(node)} has heads that cannot be followed")
        return
    analysis.freeze(node.inputs[3:4], f"{label(node)} adds it to the scores")
    _mask_heads(analysis, node, joined[0])
    _caches(analysis, node, operands[1], operands[2], (4, 5), (1, 2))
    size, positions = operands[0][0], operands[0][2]
    four = len(analysis.refs(node.inputs[0])) == 4
    out = [size, joined[0], positions, joined[1]] if four else [size, positions, analysis.axes.product(joined)]
    analysis.set(node.outputs[0], out)
    for scores in node.outputs[3:]:
        analysis.axes.constrain(joined[0], Freedom.NONE, f"{label(node)} puts out its scores")
        analysis.set(scores, [size, joined[0], analysis.axes.fresh(None), analysis.axes.fresh(None)])


def _mask_heads(analysis: Analysis, node: ir.Node, heads: Ref) -> None:
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    refs = analysis.refs(mask)
    if refs is not None and len(refs) >= 3 and analysis.axes.size(refs[-3]) != 1:
        analysis.axes.constrain(heads, Freedom.NONE, f"{label(node)} has a mask for each head")


def rotary_axis(analysis: Analysis, ref: Ref, rotated: int, interleaved: bool, reason: str) -> None:
    """Leave one positive or negative scale per rotated pair: what commutes with every rotation of the pair.

    The rotations of the pair itself commute too (RoPE turns each pair by an angle), but equalize nothing.
    """
    axes, size = analysis.axes, analysis.axes.size(ref)
    parts = axes.as_sum(ref, [rotated, size - rotated], reason) if size and 0 < rotated < size else [ref]
    split = [2, rotated // 2] if not interleaved else [rotated // 2, 2]
    pair = parts and axes.as_product(parts[0], split, reason)
    if not pair:
        axes.constrain(ref, Freedom.NONE, reason)
        return
    axes.constrain(pair[int(interleaved)], Freedom.NONE, f"{reason} turns pairs")
    axes.constrain(pair[1 - int(interleaved)], Freedom.DIAGONAL, f"{reason} turns each pair by its own angle")


@rule("RotaryEmbedding")
@rule("RotaryEmbedding", domain="com.microsoft")
def rotary(analysis: Analysis, node: ir.Node) -> None:
    """Rotates pairs of elements of each head by an angle that depends on the position."""
    refs = list(analysis.refs(node.inputs[0]))
    count = node.attributes.get_int("num_heads", 0)
    operand = _heads(analysis, refs, count, label(node))
    if operand is None:
        analysis.opaque(node, f"{label(node)} has heads that cannot be followed")
        return
    dim = operand[3]
    rotated = node.attributes.get_int("rotary_embedding_dim", 0) or analysis.axes.size(dim)
    rotary_axis(analysis, dim, rotated, bool(node.attributes.get_int("interleaved", 0)), label(node))
    analysis.axes.constrain(operand[2], Freedom.NONE, f"{label(node)} depends on the position")
    analysis.set(node.outputs[0], refs)


@rule("MultiHeadAttention", domain="com.microsoft")
def multi_head(analysis: Analysis, node: ir.Node) -> None:
    """onnxruntime's fused operator with separate ``[batch, length, hidden]`` operands."""
    values = list(node.inputs[:3])
    count = node.attributes.get_int("num_heads", 0)
    known = [analysis.refs(v) for v in values]
    operands = [_heads(analysis, list(refs), count, label(node)) if refs else None for refs in known]
    joined = None if len(values) < 3 or None in operands else _attend(analysis, node, *operands)
    if joined is None or (len(node.inputs) > 3 and node.inputs[3] is not None and not _bias(analysis, node, known)):
        analysis.opaque(node, f"{label(node)} has a packed layout that is not followed")
        return
    analysis.freeze(node.inputs[4:6], f"{label(node)} adds it to the scores")
    _caches(analysis, node, operands[1], operands[2], (6, 7), (1, 2))
    analysis.set(node.outputs[0], [operands[0][0], operands[0][2], analysis.axes.product(joined)])


def _bias(analysis: Analysis, node: ir.Node, operands: list[list[Ref]]) -> bool:
    sizes = [analysis.axes.size(refs[-1]) for refs in operands]
    parts = analysis.axes.as_sum(analysis.refs(node.inputs[3])[0], sizes, label(node))
    for part, refs in zip(parts or (), operands, strict=False):
        analysis.axes.unify(part, refs[-1], f"{label(node)} adds its bias")
    return parts is not None


@rule("GroupQueryAttention", domain="com.microsoft")
def group_query(analysis: Analysis, node: ir.Node) -> None:
    """onnxruntime's fused decoder attention with cache; may apply rotary embeddings itself."""
    counts = [node.attributes.get_int(name, 0) for name in ("num_heads", "kv_num_heads", "kv_num_heads")]
    known = [analysis.refs(v) for v in node.inputs[:3]]
    operands = [_heads(analysis, list(r), n, label(node)) if r else None for r, n in zip(known, counts, strict=True)]
    joined = None if None in operands else _attend(analysis, node, *operands)
    if joined is None:
        analysis.opaque(node, f"{label(node)} has packed operands that are not followed")
        return
    if node.attributes.get_int("do_rotary", 0):
        interleaved = bool(node.attributes.get_int("rotary_interleaved", 0))
        for operand in operands[:2]:
            rotary_axis(analysis, operand[3], analysis.axes.size(operand[3]), interleaved, label(node))
    _caches(analysis, node, operands[1], operands[2], (3, 4), (1, 2))
    analysis.freeze(node.inputs[5:], f"{label(node)} uses it as it is")
    analysis.set(node.outputs[0], [operands[0][0], operands[0][2], analysis.axes.product(joined)])


@rule("Attention", domain="com.microsoft")
def fused_attention(analysis: Analysis, node: ir.Node) -> None:
    """onnxruntime's fused operator that holds the query, key and value projection itself."""
    x, weight = (analysis.refs(v) for v in node.inputs[:2])
    sizes = node.attributes.get_ints("qkv_hidden_sizes", [(analysis.axes.size(weight[1]) or 0) // 3] * 3)
    parts = analysis.axes.as_sum(weight[1], list(sizes), label(node))
    count = node.attributes.get_int("num_heads", 0)
    operands = parts and [_heads(analysis, [x[0], x[1], part], count, label(node)) for part in parts]
    joined = None if not operands or None in operands else _attend(analysis, node, *operands)
    if joined is None or len([v for v in node.inputs if v is not None]) > 4 or node.attributes.get_int("do_rotary", 0):
        analysis.opaque(node, f"{label(node)} has an option that is not followed")
        return
    contract(analysis, x[2], weight[0], label(node))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        analysis.axes.unify(weight[1], analysis.refs(node.inputs[2])[0], f"{label(node)} adds its bias")
    analysis.freeze(node.inputs[3:4], f"{label(node)} masks with it")
    _caches(analysis, node, operands[1], operands[2], (), (1,))
    analysis.set(node.outputs[0], [x[0], x[1], analysis.axes.product(joined)])
    if is_weight(node.inputs[1]):
        analysis.sites.append(Site(node, node.inputs[1], node.inputs[0], 0, 1, x[2], weight[1]))
