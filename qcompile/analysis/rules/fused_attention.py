"""onnxruntime's fused attention operators."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qcompile.analysis.axes import Mode, Ref, complete
from qcompile.analysis.rules.attention import (
    Heads,
    add_to_scores,
    attend,
    caches,
    put_out_scores,
    rotary_axis,
    split_heads,
)
from qcompile.analysis.rules.elementwise import is_one
from qcompile.analysis.rules.linear import add_channel_bias, contract, is_weight
from qcompile.analysis.spaces import Analysis, Site, rule
from qcompile.ir.graph import is_read, label
from qcompile.ir.required import operand, optional
from qcompile.transforms.freedom import Freedom

__all__: list[str] = []


def _operands(
    analysis: Analysis, node: ir.Node, refs: Sequence[Sequence[Ref] | None], counts: Sequence[int]
) -> list[Heads] | None:
    """Queries, keys and values by their heads, ``None`` if one is missing or cannot be followed."""
    return complete([
        split_heads(analysis, list(item), n, label(node)) if item else None
        for item, n in zip(refs, counts, strict=True)
    ])  # fmt: skip


@rule("MultiHeadAttention", domain="com.microsoft")
def multi_head(analysis: Analysis, node: ir.Node) -> None:
    """Separate ``[batch, length, hidden]`` operands, or keys and values ``[batch, heads, length, head_dim]``."""
    bias = optional(node, 3)
    known = [analysis.refs_or_none(optional(node, i)) for i in range(3)]
    operands = _operands(analysis, node, known, [node.attributes.get_int("num_heads", 0)] * 3)
    joined = None if operands is None or optional(node, 9) is not None else attend(analysis, node, *operands)
    if operands is None or joined is None or (bias is not None and not _bias(analysis, node, bias, known)):
        analysis.opaque(node, f"{label(node)} has a packed layout that is not followed")
        return
    query, key, value = operands
    _padding(analysis, node, optional(node, 4), query[0])
    add_to_scores(analysis, node, optional(node, 5), query[0], query[1])
    caches(analysis, node, key, value, (6, 7), (1, 2))
    put_out_scores(analysis, node, query, 3)
    analysis.set(node.outputs[0], [query[0], query[2], analysis.axes.product(joined)])


def _bias(analysis: Analysis, node: ir.Node, bias: ir.Value, known: Sequence[list[Ref] | None]) -> bool:
    """One bias for the three projections; it is one number along the batch."""
    operands = complete(known)
    if operands is None or any(len(refs) != 3 for refs in operands):
        return False
    sizes = [analysis.axes.size(refs[-1]) for refs in operands]
    parts = analysis.axes.as_sum(analysis.refs(bias)[0], sizes, label(node))
    for part, refs in zip(parts or (), operands, strict=False):
        analysis.axes.unify(part, refs[-1], f"{label(node)} adds its bias")
        analysis.axes.constrain(refs[0], Freedom.ORTHOGONAL_ONES, f"{label(node)} adds one number along the axis")
    return parts is not None


def _padding(analysis: Analysis, node: ir.Node, mask: ir.Value | None, batch: Ref) -> None:
    if mask is not None:
        analysis.axes.constrain(batch, Freedom.SIGNS, f"{label(node)} has a mask for each sequence")


@rule("GroupQueryAttention", domain="com.microsoft")
def group_query(analysis: Analysis, node: ir.Node) -> None:
    """Decoder attention with cache; may hold all projections in one operand and apply rotary embeddings itself."""
    counts = [node.attributes.get_int(name, 0) for name in ("num_heads", "kv_num_heads", "kv_num_heads")]
    known: Sequence[list[Ref] | None] = [analysis.refs_or_none(optional(node, i)) for i in range(3)]
    if known[1] is None and known[2] is None:
        known = _unpacked(analysis, node, known[0], counts) or known
    operands = _operands(analysis, node, known, counts)
    unfollowed = (12, 13, 14, 15)  # quantized caches, norms of queries and keys
    special = any(optional(node, i) is not None for i in unfollowed)
    joined = None if operands is None or special else attend(analysis, node, *operands)
    if operands is None or joined is None:
        analysis.opaque(node, f"{label(node)} has operands that are not followed")
        return
    query, key, value = operands
    if node.attributes.get_int("do_rotary", 0):
        width = analysis.refs_or_none(optional(node, 7))
        half = analysis.axes.size(width[-1]) if width else None
        interleaved = bool(node.attributes.get_int("rotary_interleaved", 0))
        for operand in (query, key):
            rotary_axis(analysis, operand[3], 2 * half if half else None, interleaved, label(node))
    caches(analysis, node, key, value, (3, 4), (1, 2))
    add_to_scores(analysis, node, optional(node, 10), query[0], query[1])
    _sinks(analysis, node, optional(node, 11), query[1])
    analysis.freeze(node.inputs[5:10], f"{label(node)} uses it as it is")
    analysis.axes.constrain(query[0], Freedom.SIGNS, f"{label(node)} has a length for each sequence")
    put_out_scores(analysis, node, query, 3)
    analysis.set(node.outputs[0], [query[0], query[2], analysis.axes.product(joined)])


def _unpacked(
    analysis: Analysis, node: ir.Node, refs: list[Ref] | None, counts: Sequence[int]
) -> list[list[Ref]] | None:
    """Queries, keys and values that stand side by side in one operand."""
    size = analysis.axes.size(refs[-1]) if refs and len(refs) == 3 else None
    if not refs or not size or not sum(counts) or size % sum(counts):
        return None
    sizes = [count * (size // sum(counts)) for count in counts]
    parts = analysis.axes.as_sum(refs[-1], sizes, label(node))
    return None if parts is None else [[*refs[:-1], part] for part in parts]


def _sinks(analysis: Analysis, node: ir.Node, sinks: ir.Value | None, heads: Ref) -> None:
    for ref in analysis.refs_or_none(sinks) or ():
        if not is_one(analysis, ref):
            analysis.axes.unify(ref, heads.through(Mode.PLAIN), f"{label(node)} has a sink for each head")


@rule("Attention", domain="com.microsoft")
def projecting(analysis: Analysis, node: ir.Node) -> None:
    """Attention that holds the projections of queries, keys and values itself."""
    x, weight = (analysis.refs(value) for value in node.inputs[:2])
    sizes = node.attributes.get_ints("qkv_hidden_sizes", [(analysis.axes.size(weight[1]) or 0) // 3] * 3)
    parts = analysis.axes.as_sum(weight[1], list(sizes), label(node))
    counts = [node.attributes.get_int("num_heads", 0)] * 3
    operands = None if parts is None else _operands(analysis, node, [[x[0], x[1], part] for part in parts], counts)
    cached = optional(node, 4) is not None or is_read(node, 1)  # keys and values in one tensor
    special = cached or node.attributes.get_int("do_rotary", 0) != 0
    joined = None if operands is None or special else attend(analysis, node, *operands)
    if operands is None or joined is None:
        analysis.opaque(node, f"{label(node)} has an option that is not followed")
        return
    contract(analysis, x[2], weight[0], label(node))
    if optional(node, 2) is not None:
        add_channel_bias(analysis, node, weight[1], analysis.refs(node.inputs[2])[0], x[:1])
    _padding(analysis, node, optional(node, 3), x[0])
    add_to_scores(analysis, node, optional(node, 5), x[0], operands[0][1])
    analysis.set(node.outputs[0], [x[0], x[1], analysis.axes.product(joined)])
    if is_weight(operand(node, 1)):
        analysis.sites.append(Site(node, operand(node, 1), operand(node, 0), 0, 1, x[2], weight[1]))
