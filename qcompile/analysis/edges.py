"""Sites at the edges of a model, which suffer most."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qcompile.analysis.spaces import Site

__all__ = ["edge_sites", "is_edge"]


def edge_sites(model: ir.Model, sites: Sequence[Site]) -> set[str]:
    """Sites at the edges: embedding tables, heads that share one, and what writes an output of the graph directly."""
    return {site.name for site in sites if is_edge(model.graph, site)}


def is_edge(graph: ir.Graph, site: Site) -> bool:
    """Whether a site stands at the edge of a graph."""
    table = site.input is None or site.stored is not site.weight
    return table or not _written(site.node.outputs[0]).isdisjoint(graph.outputs)


def _written(value: ir.Value) -> set[ir.Value]:
    """The value and what elementwise operators with constants, casts and reshapes make of it."""
    found, queue = set(), [value]
    while queue:
        value = queue.pop()
        if value in found:
            continue
        found.add(value)
        for node, _ in value.uses():
            others = [v for v in node.inputs if v is not None and v is not value and v.const_value is None]
            if not others and node.op_type in ("Add", "Cast", "Reshape", "Mul", "Div", "Tanh", "Softmax", "Squeeze"):
                queue.extend(node.outputs)
    return found
