"""Insert boundaries: nodes that compute nothing where a space could be parted from what takes its freedom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from qcompile.analysis.analyze import analyze
from qcompile.analysis.axes import AxisNode, Ref
from qcompile.analysis.boundaries import BODY, OP
from qcompile.analysis.spaces import Analysis, Site, Space
from qcompile.ir.functions import DOMAIN, ensure_function
from qcompile.ir.graph import append_node, bodies, is_float
from qcompile.passes.state import State
from qcompile.transforms.freedom import Freedom

__all__ = ["InsertBoundaries"]


@dataclass(frozen=True)
class InsertBoundaries:
    """Put boundaries where they could pay; rotate takes them away again, or makes online transforms of them.

    Args:
        most_axes: values of more are caches and attention maps, with more rows than the sites that they could help.
    """

    most_axes: int = 3
    name: ClassVar[str] = "insert-boundaries"

    def apply(self, state: State) -> bool:
        """Add nodes to the main graph, once; its function stays the same."""
        if any((node.domain, node.op_type) == (DOMAIN, OP) for node in state.model.graph):
            reason = "the graph has boundaries: what lies between them is parted as far as it is to be"
            state.decline("*", "inserting boundaries", reason)
            return False
        analysis = analyze(state.model)
        positions = _positions(analysis, self.most_axes)
        for value, readers in positions.items():
            _insert(state.model, value, readers)
        if positions:
            state.edited()
        return bool(positions)


def _positions(analysis: Analysis, most_axes: int) -> dict[ir.Value, set[ir.Node | None]]:
    """Values at which a boundary could pay, with the readers that it keeps from the rest, ``None`` for an output."""
    positions: dict[ir.Value, set[ir.Node | None]] = {}
    uses = None
    for space in analysis.spaces:
        if Freedom.ORTHOGONAL_ONES in space.freedom or analysis.mixed & space.node.reasons:
            continue
        waiting = _waiting(analysis, space)
        if len({site.input for site in waiting}) > 1 or not all(waiting.values()):  # else one transform will do
            uses = uses or analysis.uses()
            found = _separation(analysis, space, uses[space.node], waiting, most_axes)
            for value, readers in found.items():
                positions.setdefault(value, set()).update(readers)
    return positions


#: What the network of a space is made of: an operator, or the side of a site that reads or writes the space.
_Part = ir.Node | tuple[str, ir.Node]


def _waiting(analysis: Analysis, space: Space) -> dict[Site, bool]:
    """The readers for which a space cannot rotate, and whether an online transform in front of them would do.

    It would not where another segment of their input rotates: then this one needs a transform before they are joined.
    """
    found = {}
    for site in space.readers:
        if site.input is None or site.ref_in is None:  # a table reads nothing
            continue
        leaves = [analysis.axes.leaves(segment) for segment in analysis.axes.segments(site.ref_in)]
        if not all(any(map(_free, own)) for own in leaves if any(leaf.node is space.node for leaf in own)):
            found[site] = not any(_free(leaf) for own in leaves for leaf in own)
    return found


def _free(leaf: Ref) -> bool:
    return leaf.node.size != 1 and Freedom.ORTHOGONAL_ONES in leaf.node.freedom


def _separation(
    analysis: Analysis,
    space: Space,
    uses: Sequence[tuple[ir.Value, int]],
    waiting: Mapping[Site, bool],
    most_axes: int,
) -> dict[ir.Value, set[ir.Node | None]]:
    """Values at which boundaries keep culprits from sites, with the readers that they keep from the rest.

    A minimum cut between the culprits and the sites: a boundary costs as much as an online transform in front of the
    sites that read one value, and is taken only where it saves one.
    """
    import networkx as nx  # where it is needed: most graphs have nothing to cut

    values = list(dict.fromkeys(value for value, _ in uses))
    network = nx.DiGraph()
    network.add_nodes_from(("culprits", "sites"))
    outer = _outermost(analysis.model.graph)
    for culprit in space.node.culprits:
        for part in _parts(culprit, outer):
            network.add_edge("culprits", part)
    many = len(values) + 1
    for value in values:
        if value in space.node.culprits:
            network.add_edge("culprits", ("in", value))
        price = {"capacity": many + 1} if _may_stand(analysis, space.node, value, most_axes) else {}
        network.add_edge(("in", value), ("out", value), **price)  # without a capacity, infinitely much
        for part in _touching(value, space, outer):
            network.add_edge(part, ("in", value))
            network.add_edge(("out", value), part)
    for site, in_front in waiting.items():
        network.add_edge(("read", site.node), ("read", site.input))
        network.add_edge(("read", site.input), "sites", capacity=many if in_front else many * many)
    _, (_, cut_off) = nx.minimum_cut(network.reverse(copy=False), "sites", "culprits")  # of equal cuts the widest
    cut = [v for v in values if ("in", v) in cut_off and ("out", v) not in cut_off]
    return {value: _cut_off(value, space, outer, cut_off) for value in cut}


def _outermost(graph: ir.Graph) -> dict[ir.Node, ir.Node]:
    """The operator of the graph in whose body a node stands."""
    return {inner: node for node in graph for body in bodies(node) for inner in body.all_nodes()}


def _parts(culprit: object, outer: dict[ir.Node, ir.Node]) -> list[_Part]:
    if not isinstance(culprit, ir.Node):
        return []
    node = outer.get(culprit, culprit)
    return [node, ("read", node), ("write", node)]


def _may_stand(analysis: Analysis, space: AxisNode, value: ir.Value, most_axes: int) -> bool:
    """Whether there can be a boundary at a value: its features, and they alone, are of the space."""
    refs = analysis.refs_of.get(value) or []
    holds = [any(leaf.node is space for leaf in analysis.axes.leaves(ref)) for ref in refs]
    last = bool(holds) and holds[-1] and not any(holds[:-1]) and len(refs) <= most_axes
    here = value.const_value is None and value.graph is analysis.model.graph
    return last and here and is_float(value)


def _touching(value: ir.Value, space: Space, outer: dict[ir.Node, ir.Node]) -> list[_Part]:
    """What makes and reads a value, with the sides of sites apart: a site's weight takes up what differs there."""
    return [_part(value, node, space, outer) for node in (value.producer(), *value.consumers()) if node is not None]


def _part(value: ir.Value, node: ir.Node, space: Space, outer: dict[ir.Node, ir.Node]) -> _Part:
    if any(site.node is node and value in (site.input, site.weight) for site in space.readers):
        return "read", node
    if any(site.node is node and value in (*node.outputs, site.weight) for site in space.writers):
        return "write", node
    return outer.get(node, node)


def _cut_off(value: ir.Value, space: Space, outer: dict[ir.Node, ir.Node], cut_off: set[object]) -> set[ir.Node | None]:
    """The readers of a value on that side of the boundary on which its producer is not, ``None`` for an output."""
    made_by = value.producer()
    made_there = made_by is None or _part(value, made_by, space, outer) in cut_off
    readers: set[ir.Node | None] = {*value.consumers()}
    there = {node for node in value.consumers() if _part(value, node, space, outer) in cut_off}
    outputs = {None} if value.is_graph_output() else set()
    return readers - there if made_there else there | outputs


def _insert(model: ir.Model, value: ir.Value, readers: set[ir.Node | None]) -> None:
    name = ensure_function(model, OP, BODY)
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
