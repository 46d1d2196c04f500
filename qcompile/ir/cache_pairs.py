"""The caches and states of a graph: inputs that it goes on from, each with the output that takes its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from qcompile.ir.functions import DOMAIN

__all__ = ["CachePair", "cache_pairs"]

#: Operators that hold a cache or a state themselves: outputs by the inputs that they go on from.
_HOLDS: dict[tuple[str, str], dict[int, int]] = {
    ("", "Attention"): {4: 1, 5: 2},
    ("", "CausalConvWithState"): {3: 1},
    ("", "LinearAttention"): {3: 1},
    ("", "ScatterElements"): {0: 0},
    ("", "ScatterND"): {0: 0},
    ("", "TensorScatter"): {0: 0},
    ("com.microsoft", "GroupQueryAttention"): {3: 1, 4: 2},
    ("com.microsoft", "MultiHeadAttention"): {6: 1, 7: 2},
    (DOMAIN, "SelectiveScanWithState"): {6: 1},
    (DOMAIN, "StateSpaceDualityWithState"): {6: 1},
}

#: Operators whose output is their first input elsewhere, or a part of it.
_CARRIES = {"Cast", "Concat", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}

#: Holders whose cache is longer with each call, along the axis before the last.
_GROWING = {"Attention", "GroupQueryAttention", "MultiHeadAttention"}

_LENGTH = 2


@dataclass(frozen=True)
class CachePair:
    """A graph's input that holds what was before, and the output that holds it with what came.

    Args:
        past: the input.
        present: the output.
        node: the operator that reads the past: it appends to it, or goes on from it.
        axis: along which the present is longer than the past; ``None`` for a state of one size.
    """

    past: ir.Value
    present: ir.Value
    node: ir.Node
    axis: int | None


def cache_pairs(model: ir.Model) -> list[CachePair]:
    """The caches and states of a graph, in the order of its inputs; names play no part.

    An input belongs to an output of its rank and type that it reaches through operators which keep it: those that
    append, move axes, or hold a cache themselves.
    """
    found: list[CachePair] = []
    taken: set[ir.Value] = set()
    for past in model.graph.inputs:
        for present, first, axis in _carried(past):
            if present not in taken and present is not past and _alike(past, present):
                taken.add(present)
                found.append(CachePair(past, present, first, axis))
                break
    return found


def _alike(past: ir.Value, present: ir.Value) -> bool:
    same_type = present.dtype is None or past.dtype == present.dtype
    return same_type and (past.shape is None or present.shape is None or len(past.shape) == len(present.shape))


def _carried(past: ir.Value) -> Iterator[tuple[ir.Value, ir.Node, int | None]]:
    """Outputs of the graph that go on from a value, with the first operator on the way, and the axis that grows.

    What merely passes a value on does not go on from it.
    """
    seen = {past}
    line: list[tuple[ir.Value, ir.Node | None, int | None, bool]] = [(past, None, None, False)]
    while line:
        value, first, axis, goes_on = line.pop(0)
        if first is not None and goes_on and value.is_graph_output():
            yield value, first, axis
        for node, place in value.uses():
            kept = _kept(node, place)
            if kept is not None and kept < len(node.outputs) and node.outputs[kept] not in seen:
                seen.add(node.outputs[kept])
                adds = goes_on or node.op_type == "Concat" or node.op_type not in _CARRIES
                line.append((node.outputs[kept], first or node, _axis(node, value, axis), adds))


def _kept(node: ir.Node, place: int) -> int | None:
    """The output of an operator that holds what it reads at a place, if any does."""
    if node.op_type == "Scan" and not node.domain:
        states = len(node.inputs) - node.attributes.get_int("num_scan_inputs", 0)
        return place if place < states else None
    if (held := _HOLDS.get((node.domain, node.op_type))) is not None:
        return held.get(place)
    return 0 if not node.domain and node.op_type in _CARRIES and place == 0 else None


def _axis(node: ir.Node, value: ir.Value, axis: int | None) -> int | None:
    """The axis along which a value grows behind an operator; a part of what grew has one size again."""
    if node.op_type in _GROWING:
        return _LENGTH
    if node.op_type == "Concat":
        at = node.attributes.get_int("axis", 0)
        return at if at >= 0 or value.shape is None else at + len(value.shape)
    return None if node.op_type == "Slice" else axis
