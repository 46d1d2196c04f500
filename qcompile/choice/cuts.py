"""Minimum cuts: which spaces change basis."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

__all__ = ["components", "minimum_cut"]

Space = TypeVar("Space", bound=Hashable)


def minimum_cut(
    costs: Mapping[Space, tuple[float, float]], edges: Sequence[tuple[Hashable, Hashable, float]]
) -> set[Space]:
    """The spaces that change basis, so that the sum of costs is least: exact, as a minimum cut.

    Args:
        costs: by space, of the plain and of the changed basis; all at least zero.
        edges: pairs of spaces with the cost of their being in different bases. A space without costs stays plain.
    """
    if not costs:
        return set()
    import networkx as nx

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


def components(pairs: Sequence[tuple[Hashable, Hashable]]) -> Iterable[set[Any]]:
    """The sets that the pairs join."""
    if not pairs:
        return ()
    import networkx as nx

    return nx.connected_components(nx.Graph(pairs))
