"""The graph as a drawing: every operator has a layer and a place in it, every edge the space that it carries.

An operator's layer is the length of the longest path from the inputs. Within a layer, operators stand as near as
possible to the mean place of their inputs, then of their readers (one sweep down, one up, one down). The computation of
shapes and masks is kept apart, on the right, so that the path of the features can be followed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompile.ir.graph import is_float
from qcompile.ir.module_paths import module_path

if TYPE_CHECKING:
    import onnx_ir as ir

    from qcompile.analysis.spaces import Analysis

__all__ = ["drawing"]

#: The distance between neighbours of a layer.
WIDTH = 1.0

#: An operator with one input moves down if what reads it first is more than this many layers away.
SLACK = 12

#: Layers over which a drift to one side is measured.
SMOOTH = 41


def drawing(analysis: Analysis, found: Mapping[str, Any]) -> dict[str, Any]:
    """Operators and edges with their places.

    Args:
        found: the result of ``inspect``. Spaces are referred to by their index in ``found["spaces"]``.

    Returns:
        ``nodes``: ``{op, name, shape, layer, x, spaces, main, aux, kind}``; ``edges``: ``[from, to, value, space]``;
        ``layers``: how many there are.
    """
    graph = analysis.model.graph
    spaces = _SpacesOf(analysis, found["spaces"])
    nodes = [_pseudo("input", value, spaces) for value in graph.inputs if value.name not in graph.initializers]
    makers = {value: i for i, value in enumerate(v for v in graph.inputs if v.name not in graph.initializers)}
    edges: list[tuple[int, int, ir.Value]] = []
    for node in graph:
        edges += [(makers[v], len(nodes), v) for v in dict.fromkeys(_reads(node)) if v in makers]
        makers |= dict.fromkeys(node.outputs, len(nodes))
        nodes.append(_operator(node, spaces))
    for value in graph.outputs:
        edges += [(makers[value], len(nodes), value)] if value in makers else []
        nodes.append(_pseudo("output", value, spaces))
    _place(nodes, [(a, b) for a, b, _ in edges])
    drawn = [[a, b, value.name or "", spaces.main(value)] for a, b, value in edges]
    return {"nodes": nodes, "edges": drawn, "layers": 1 + max((n["layer"] for n in nodes), default=0)}


def _reads(node: ir.Node) -> Iterable[ir.Value]:
    """The values that a node reads, those within its subgraphs included."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        for graph in _graphs(attribute):
            for inner in graph.all_nodes():
                yield from (value for value in inner.inputs if value is not None)


def _graphs(attribute: Any) -> Sequence[ir.Graph]:
    import onnx_ir as ir

    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.value]
    return list(attribute.value) if attribute.type == ir.AttributeType.GRAPHS else []


class _SpacesOf:
    """Indices of the spaces of a value."""

    def __init__(self, analysis: Analysis, shown: Sequence[Mapping[str, Any]]) -> None:
        places = {entry["id"]: i for i, entry in enumerate(shown)}
        self._analysis = analysis
        self._index = {space.node: places[space.id] for space in analysis.spaces if space.id in places}
        self._used = {i for i, entry in enumerate(shown) if entry["readers"] or entry["writers"]}

    def of(self, value: ir.Value) -> list[int]:
        """All of them, the last axis first."""
        found: list[int] = []
        for ref in reversed(self._analysis.refs_of.get(value) or ()):
            leaves = self._analysis.axes.leaves(ref)
            found += [self._index[leaf.node] for leaf in reversed(leaves) if leaf.node in self._index]
        return list(dict.fromkeys(found))

    def main(self, value: ir.Value) -> int:
        """The one that a drawing shows: the last that touches a site, -1 for none."""
        found = self.of(value) if value.dtype is None or is_float(value) else []
        return next((i for i in found if i in self._used), found[0] if found else -1)


def _shape(value: ir.Value) -> str:
    return "?" if value.shape is None else "x".join(str(getattr(dim, "value", dim) or "?") for dim in value.shape)


def _pseudo(kind: str, value: ir.Value, spaces: _SpacesOf) -> dict[str, Any]:
    name = value.name or ""
    common = {"op": kind, "name": name, "shape": _shape(value), "kind": kind}
    return common | {"spaces": spaces.of(value), "main": spaces.main(value), "aux": False}


def _operator(node: ir.Node, spaces: _SpacesOf) -> dict[str, Any]:
    out = node.outputs[0]
    touched = [i for value in (out, *(v for v in node.inputs if v is not None)) for i in spaces.of(value)]
    return {
        "op": node.op_type,
        "name": node.name or out.name or "",
        "module": module_path(node),
        "shape": _shape(out),
        "kind": "node",
        "spaces": list(dict.fromkeys(touched)),
        "main": spaces.main(out),
        "aux": all(value.dtype is not None and not is_float(value) for value in node.outputs),
    }


# -- places ----------------------------------------------------------------------------------------------------------


def _place(nodes: list[dict[str, Any]], edges: Sequence[tuple[int, int]]) -> None:
    before, after = defaultdict(list), defaultdict(list)
    for a, b in edges:
        before[b].append(a)
        after[a].append(b)
    _layer(nodes, before, after)
    layers: dict[int, list[int]] = defaultdict(list)
    for i, node in enumerate(nodes):
        layers[node["layer"]].append(i)
    rows = [layers[number] for number in sorted(layers)]
    x = dict.fromkeys(range(len(nodes)), 0.0)
    for order, near in ((rows, before), (rows[::-1], after), (rows, before)):
        for row in order:
            _spread(row, near, x, nodes)
    for row, drift in zip(rows, _drift(rows, x, nodes)):
        for i in row:
            nodes[i]["x"] = round(x[i] - drift, 3)


def _drift(rows: Sequence[Sequence[int]], x: Mapping[int, float], nodes: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The mean place of each layer and its surroundings: what is subtracted, so that long graphs run straight down."""
    centers = np.array([_mean([x[i] for i in row if not nodes[i]["aux"]], 0.0) for row in rows])
    window = min(SMOOTH, 2 * len(rows) - 1)
    padded = np.pad(centers, (window // 2, window // 2), mode="edge")
    return np.convolve(padded, np.full(window // 2 * 2 + 1, 1 / (window // 2 * 2 + 1)), mode="valid")


def _layer(nodes: list[dict[str, Any]], before: Mapping[int, list[int]], after: Mapping[int, list[int]]) -> None:
    """Longest paths over what carries features; the rest, and side branches, stand just above what reads them first."""
    for i, node in enumerate(nodes):
        sources = [nodes[j]["layer"] + 1 for j in before[i] if not nodes[j]["aux"]]
        node["layer"] = max(sources, default=0)
    for i in reversed(range(len(nodes))):
        if after[i]:
            lowest = max(0, min(nodes[j]["layer"] for j in after[i]) - 1)
            branch = lowest - nodes[i]["layer"] > SLACK and len(set(before[i])) == 1
            nodes[i]["layer"] = lowest if nodes[i]["aux"] or branch else nodes[i]["layer"]


def _spread(
    row: list[int], near: Mapping[int, list[int]], x: dict[int, float], nodes: Sequence[Mapping[str, Any]]
) -> None:
    """Put a layer's operators next to their neighbours, without overlap."""
    wanted = {i: _mean([x[j] for j in near[i] if not nodes[j]["aux"]], x[i]) for i in row}
    main = sorted((i for i in row if not nodes[i]["aux"]), key=lambda i: (wanted[i], i))
    edge = float("-inf")
    for i in main:
        x[i] = edge = max(wanted[i], edge + WIDTH)
    shift = _mean([wanted[i] - x[i] for i in main], 0.0)
    for i in main:
        x[i] += shift
    right = max((x[i] for i in main), default=0.0)
    for place, i in enumerate(i for i in row if nodes[i]["aux"]):
        x[i] = right + (place + 1.5) * WIDTH


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default
