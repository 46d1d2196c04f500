"""Attention and rotary embeddings: scores contract queries with keys, values are mixed over positions."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qcompile.analysis.axes import Mode, Ref, complete
from qcompile.analysis.rules.elementwise import is_one
from qcompile.analysis.rules.linear import contract
from qcompile.analysis.spaces import Analysis, rule
from qcompile.ir.graph import label
from qcompile.ir.required import optional
from qcompile.transforms.freedom import Freedom

__all__ = ["add_to_scores", "attend", "caches", "put_out_scores", "rotary_axis", "split_heads"]

#: (batch, heads, positions, head_dim) of an operand.
Heads = tuple[Ref, Ref, Ref, Ref]


def split_heads(analysis: Analysis, refs: Sequence[Ref], count: int, reason: str) -> Heads | None:
    """The four axes of an operand ``[batch, heads, length, dim]`` or ``[batch, length, heads * dim]``."""
    if len(refs) == 4:
        return refs[0], refs[1], refs[2], refs[3]
    size = analysis.axes.size(refs[-1])
    if len(refs) != 3 or size is None or not count or size % count:
        return None
    parts = analysis.axes.as_product(refs[2], [count, size // count], reason)
    return None if parts is None else (refs[0], parts[0], refs[1], parts[1])


def attend(analysis: Analysis, node: ir.Node, query: Heads, key: Heads, value: Heads) -> tuple[Ref, Ref] | None:
    """Join the axes of queries, keys and values; returns the heads and head_dim of the result."""
    axes, reason = analysis.axes, label(node)
    contract(analysis, query[3], key[3], reason)
    for ref in (query[2], key[2], value[2]):
        axes.constrain(ref, Freedom.NONE, f"{reason} masks positions")
    for ref in (query[0], key[0], value[0]):  # a sign on queries, keys and values is one on the result
        axes.constrain(ref, Freedom.SIGNED_PERMUTATION, f"{reason} treats each sequence by itself")
        axes.unify(query[0], ref, f"{reason} treats each sequence by itself")
    count, shared = axes.size(query[1]), axes.size(key[1])
    if count is None or shared is None:
        return None
    parts = axes.as_product(query[1], [shared, count // shared], reason)
    if parts is None:
        return None
    for ref in (parts[0], key[1], value[1]):
        axes.constrain(ref, Freedom.SIGNED_PERMUTATION, f"{reason} treats each head by itself")
    axes.constrain(parts[1], Freedom.PERMUTATION, f"{reason} treats each head by itself")
    axes.unify(parts[0], key[1], f"{reason} shares keys among heads")
    axes.unify(parts[0], value[1], f"{reason} shares values among heads")
    return query[1], value[3]


def caches(
    analysis: Analysis, node: ir.Node, key: Heads, value: Heads, inputs: Sequence[int], outputs: Sequence[int]
) -> None:
    """Past and present keys and values ``[batch, heads, length, head_dim]`` share the basis of the new ones."""
    axes, reason = analysis.axes, f"{label(node)} appends to its cache"
    past = [optional(node, i) for i in inputs] or [None, None]
    present = [node.outputs[i] if i < len(node.outputs) else None for i in outputs]
    for operand, held, made in zip((key, value), past, present, strict=True):
        length = axes.size(operand[2])
        refs = analysis.refs_or_none(held)
        if refs is not None:
            for mine, theirs in ((operand[0], refs[0]), (operand[1], refs[1]), (operand[3], refs[3])):
                axes.unify(mine, theirs, reason)
            axes.constrain(refs[2], Freedom.NONE, reason)
            before = axes.size(refs[2])
            length = None if before is None or length is None else before + length
        if made is not None:
            analysis.set(made, [operand[0], operand[1], axes.frozen(length, reason), operand[3]])


def add_to_scores(analysis: Analysis, node: ir.Node, bias: ir.Value | None, batch: Ref, heads: Ref) -> None:
    """A bias is added to (or masks) the scores ``[batch, heads, queries, keys]``; the first two axes follow it."""
    refs = analysis.refs_or_none(bias)
    if refs is None:
        return
    for ref in refs[-2:]:
        analysis.axes.constrain(ref, Freedom.NONE, f"{label(node)} adds it to the scores")
    for ref, own, what in zip(reversed(refs[:-2]), (heads, batch), ("head", "sequence"), strict=False):
        if not is_one(analysis, ref):
            reason = f"{label(node)} has a mask for each {what}"
            analysis.axes.unify(ref, own.through(Mode.PLAIN), reason)


def put_out_scores(analysis: Analysis, node: ir.Node, query: Heads, index: int) -> None:
    """The scores as an output ``[batch, heads, queries, keys]``."""
    for scores in node.outputs[index : index + 1]:
        places = [analysis.axes.frozen(None, f"{label(node)} puts out its scores") for _ in range(2)]
        analysis.set(scores, [query[0].through(Mode.PLAIN), query[1].through(Mode.PLAIN), *places])


@rule("Attention")
def attention(analysis: Analysis, node: ir.Node) -> None:
    """The operator of opset 23: 3-D or 4-D operands, grouped-query heads, optional cache."""
    queries, keys = (node.attributes.get_int(f"{side}_num_heads", 0) for side in ("q", "kv"))
    counts = (queries, keys, keys)
    operands = complete([
        split_heads(analysis, analysis.refs(v), n, label(node)) for v, n in zip(node.inputs[:3], counts, strict=True)
    ])  # fmt: skip
    joined = None if operands is None else attend(analysis, node, *operands)
    if operands is None or joined is None:
        analysis.opaque(node, f"{label(node)} has heads that cannot be followed")
        return
    query, key, value = operands
    add_to_scores(analysis, node, optional(node, 3), query[0], query[1])
    if optional(node, 6) is not None:
        analysis.axes.constrain(query[0], Freedom.SIGNS, f"{label(node)} has a length for each sequence")
    caches(analysis, node, key, value, (4, 5), (1, 2))
    put_out_scores(analysis, node, query, 3)
    four = len(analysis.refs(node.inputs[0])) == 4
    out = [query[0], joined[0], query[2], joined[1]] if four else [query[0], query[2], analysis.axes.product(joined)]
    analysis.set(node.outputs[0], out)


def rotary_axis(analysis: Analysis, ref: Ref, rotated: int | None, interleaved: bool, reason: str) -> None:
    """Leave one positive or negative scale per rotated pair: what commutes with every rotation of the pair.

    The rotations of the pair itself commute too (RoPE turns each pair by an angle), but equalize nothing.
    """
    axes, size = analysis.axes, analysis.axes.size(ref)
    rotated = rotated or size
    parts = axes.as_sum(ref, [rotated, size - rotated], reason) if size and rotated and 0 < rotated < size else [ref]
    split = [2, (rotated or 0) // 2] if not interleaved else [(rotated or 0) // 2, 2]
    pair = rotated and parts and axes.as_product(parts[0], split, reason)
    if not pair:
        axes.constrain(ref, Freedom.NONE, reason)
        return
    axes.constrain(pair[int(interleaved)], Freedom.NONE, f"{reason} turns pairs")
    axes.constrain(pair[1 - int(interleaved)], Freedom.DIAGONAL, f"{reason} turns each pair by its own angle")


@rule("RotaryEmbedding")
@rule("RotaryEmbedding", domain="com.microsoft")
def rotary(analysis: Analysis, node: ir.Node) -> None:
    """Rotates pairs of elements of each head by an angle that depends on the position."""
    own = node.domain == "com.microsoft"
    cosines = analysis.refs(node.inputs[2 if own else 1])
    positions = analysis.refs(node.inputs[1] if own else optional(node, 3) or node.inputs[1])
    refs = list(analysis.refs(node.inputs[0]))
    half = analysis.axes.size(cosines[-1])
    rotated = node.attributes.get_int("rotary_embedding_dim", 0) or (2 * half if half else None)
    size = analysis.axes.size(refs[-1])
    count = node.attributes.get_int("num_heads", 0) or (size // rotated if own and size and rotated else 0)
    operand = split_heads(analysis, refs, count, label(node))
    if operand is None:
        analysis.opaque(node, f"{label(node)} has heads that cannot be followed")
        return
    analysis.freeze(node.inputs[1:], f"{label(node)} takes its angles from it")
    rotary_axis(analysis, operand[3], rotated, bool(node.attributes.get_int("interleaved", 0)), label(node))
    analysis.axes.constrain(operand[2], Freedom.DIAGONAL, f"{label(node)} depends on the position")
    if len(positions) > 1 and not is_one(analysis, positions[0]):
        analysis.axes.constrain(operand[0], Freedom.DIAGONAL, f"{label(node)} has positions for each sequence")
    analysis.set(node.outputs[0], refs)
