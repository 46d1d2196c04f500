"""Boundaries: where a space ends before an operator that would take its freedom, at the price of an online transform.

A tap, an output of the graph or an operator without a rule freezes every axis that is joined to it. Where few of them
stand on a space that many sites read, a node that computes nothing separates them: analysis sees two spaces, placement
decides as a minimum cut which of them change basis, and a boundary between two bases becomes an online transform.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import onnx_ir as ir

from qcompile.axes import Mode, Node, Structure
from qcompile.freedom import Freedom
from qcompile.graph import DOMAIN, append_node, ensure_function
from qcompile.spaces import Analysis, analyze, is_float, rule

__all__ = ["Boundary", "boundaries", "minimum_cut", "with_boundaries"]

#: The operator: a function whose body is Identity, and whose rule joins no features.
OP = "Boundary"

#: Values of more axes are caches and attention maps: they have more rows than the sites that they could help.
MOST_AXES = 3


@rule(OP, domain=DOMAIN)
def _apart(analysis: Analysis, node: ir.Node) -> None:
    """The features behind a boundary are a space of their own."""
    *others, last = analysis.refs(node.inputs[0])
    analysis.set(node.outputs[0], [*others, analysis.axes.fresh(analysis.axes.size(last))])


@dataclass(frozen=True)
class Boundary:
    """One boundary of an analyzed graph, and the spaces on its two sides."""

    node: ir.Node
    before: Node
    after: Node


def boundaries(analysis: Analysis) -> list[Boundary]:
    """The boundaries that stand in the graph."""
    found = [node for node in analysis.model.graph if node.op_type == OP and node.domain == DOMAIN]
    return [Boundary(n, _features(analysis, n.inputs[0]), _features(analysis, n.outputs[0])) for n in found]


def _features(analysis: Analysis, value: ir.Value) -> Node:
    return analysis.axes.find(analysis.refs_of[value][-1]).node


def with_boundaries(analysis: Analysis) -> Analysis:
    """The analysis of the graph with boundaries put in where they could pay; the same one if nowhere."""
    positions: dict[ir.Value, set[ir.Node | None]] = {}
    for space in analysis.spaces:
        if Freedom.ORTHOGONAL_ONES not in space.freedom and space.node.structure is Structure.LEAF:
            inputs = {site.input for site in space.readers if site.input is not None}
            found = _around(analysis, space.node)
            if found is not None and len(found) < len(inputs):  # else a transform in front of each costs no more
                for value, readers in found.items():
                    positions.setdefault(value, set()).update(readers)
    for value, readers in positions.items():
        _insert(analysis.model, value, readers)
    return analyze(analysis.model) if positions else analysis


def _around(analysis: Analysis, space: Node) -> dict[ir.Value, set[ir.Node | None]] | None:
    """By value, the readers that a boundary must separate from it, ``None`` being the graph's output.

    A value that the culprit makes is separated from all that read it. Returns ``None`` where boundaries cannot help.
    """
    found: dict[ir.Value, set[ir.Node | None]] = {}
    for culprit in space.culprits:
        if isinstance(culprit, ir.Value):
            touched = [(culprit, {None} if culprit.is_graph_output() else {node for node, _ in culprit.uses()})]
        elif isinstance(culprit, ir.Node) and culprit.graph is analysis.model.graph:  # none within a body
            touched = [(v, {culprit}) for v in culprit.inputs if v is not None and v.const_value is None]
            touched += [(v, {node for node, _ in v.uses()}) for v in culprit.outputs]
        else:
            return None
        for value, readers in touched:
            place = _where(analysis, value, space)
            if place == "elsewhere" or (place == "last" and not is_float(value)):
                return None
            if place == "last":
                found.setdefault(value, set()).update(readers)
    return found or None


def _where(analysis: Analysis, value: ir.Value, space: Node) -> str:
    """Whether the space is the last axis of a value, or stands elsewhere in it, or nowhere."""
    refs = analysis.refs_of.get(value) or []
    holds = [any(leaf.node is space for leaf in analysis.axes.leaves(ref)) for ref in refs]
    if not any(holds):
        return "nowhere"
    last = holds[-1] and not any(holds[:-1]) and analysis.axes.find(refs[-1]).node is space
    plain = analysis.axes.find(refs[-1]).mode is Mode.PLAIN
    return "last" if last and not plain and len(refs) <= MOST_AXES else "elsewhere"


def _insert(model: ir.Model, value: ir.Value, readers: set[ir.Node | None]) -> None:
    name = ensure_function(model, OP, "(x) => (y) { y = Identity(x) }")
    made_by = value.producer()
    node = append_node(
        made_by or next(iter(model.graph)), name, [value], name=f"{value.name}_boundary", domain=DOMAIN, like=value,
        after=made_by is not None,
    )  # fmt: skip
    for reader, index in list(value.uses()):
        if reader in readers and reader is not node:
            reader.replace_input_with(index, node.outputs[0])
    if None in readers:
        _give_output(model, value, node.outputs[0])


def _give_output(model: ir.Model, old: ir.Value, new: ir.Value) -> None:
    """Let a new value be the graph's output, under its name."""
    outputs = model.graph.outputs
    outputs[list(outputs).index(old)] = new
    name, old.name = old.name, f"{old.name}_inner"
    new.name = name


def minimum_cut(costs: Mapping[Node, tuple[float, float]], edges: Sequence[tuple[Node, Node, float]]) -> set[Node]:
    """The spaces that change basis, so that the sum of costs is least: exact, as a minimum cut.

    Args:
        costs: by space, of the plain and of the changed basis; all at least zero.
        edges: pairs of spaces with the cost of their being in different bases. A space without costs stays plain.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from(("plain", "changed"))
    for node, (plain, changed) in costs.items():
        graph.add_edge("plain", node, capacity=changed)
        graph.add_edge(node, "changed", capacity=plain)
    for a, b, cost in edges:
        ends = [node if node in costs else "plain" for node in (a, b)]
        for left, right in (ends, ends[::-1]):
            if left != right:
                known = graph.get_edge_data(left, right, {"capacity": 0.0})["capacity"]
                graph.add_edge(left, right, capacity=known + cost)
    _, (_, changed) = nx.minimum_cut(graph, "plain", "changed")
    return {node for node in costs if node in changed}
