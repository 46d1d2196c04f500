"""Boundaries: where a space ends before an operator that would take its freedom, at the price of an online transform.

A tap, an output of the graph or an operator without a rule freezes every axis that is joined to it. Where few of them
stand on a space that many sites read, a node that computes nothing separates them: analysis sees two spaces, placement
decides as a minimum cut which of them change basis, and a boundary between two bases becomes an online transform.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qcompile.analysis.axes import AxisNode, Ref, Structure
from qcompile.analysis.spaces import Analysis, rule
from qcompile.ir.functions import DOMAIN
from qcompile.ir.graph import node_name

__all__ = ["BODY", "Boundary", "OP", "boundaries", "sides_of"]

#: The operator: a function whose body is Identity, and whose rule joins no features.
OP = "Boundary"
BODY = "(x) => (y) { y = Identity(x) }"


@rule(OP, domain=DOMAIN)
def _apart(analysis: Analysis, node: ir.Node) -> None:
    """The features behind a boundary are a space of their own."""
    *others, last = analysis.refs(node.inputs[0])
    analysis.set(node.outputs[0], [*others, analysis.axes.fresh(analysis.axes.size(last))])


@dataclass(frozen=True)
class Boundary:
    """One boundary of an analyzed graph, and the axes on its two sides."""

    node: ir.Node
    before: Ref
    after: Ref

    @property
    def name(self) -> str:
        """The operator's name."""
        return node_name(self.node)


def boundaries(analysis: Analysis) -> list[Boundary]:
    """The boundaries that stand in the graph."""
    found = [node for node in analysis.model.graph if node.op_type == OP and node.domain == DOMAIN]
    return [Boundary(n, _features(analysis, n.inputs[0]), _features(analysis, n.outputs[0])) for n in found]


def _features(analysis: Analysis, value: ir.Value | None) -> Ref:
    return analysis.axes.find(analysis.refs(value)[-1])


def sides_of(analysis: Analysis, wall: Boundary) -> list[tuple[AxisNode | None, AxisNode | None]]:
    """The pairs of spaces of which both must change alike for a boundary to cost nothing; ``None`` never changes."""
    if all(side.node.structure is Structure.LEAF for side in (wall.before, wall.after)):
        return [(wall.before.node, wall.after.node)]
    leaves = [leaf.node for side in (wall.before, wall.after) for leaf in analysis.axes.leaves(side)]
    return [(node, None) for node in leaves]  # the parts of a product have no counterpart on the other side
