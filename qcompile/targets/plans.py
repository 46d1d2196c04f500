"""The plan of a site: what quantization decided, kept on the operator itself, where backends read it.

A plan stands in ``meta`` of its node, which clones share and files do not hold. The name of its scheme stands in the
node's metadata besides, which printed and saved graphs show. Lowering replaces planned operators, so that artifacts
have neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qcompile.errors import InternalError
from qcompile.formats.quantizer import Quantized
from qcompile.formats.static import Activation, Range
from qcompile.targets.scheme import Scheme

__all__ = ["PLAN", "RANGE", "SCHEME", "Plan", "drop_plans", "give_plan", "give_range", "plan_of", "planned", "ranged"]

#: Where a node's plan stands in its ``meta``, and the name of the plan's scheme in its ``metadata_props``.
PLAN, SCHEME = "qcompile.plan", "qcompile.scheme"

#: Where the static range of a node's first result stands in its ``meta``.
RANGE = "qcompile.range"


@dataclass(frozen=True)
class Plan:
    """One site, ready to be lowered; a site that keeps its weight has none.

    Args:
        scheme: how it computes.
        weight: the quantized weight as ``[out, in]`` with groups along ``in``; for an embedding table
            ``[rows, features]`` with groups along the features.
        range: of the input, where the scheme has a static scale.
    """

    scheme: Scheme
    weight: Quantized
    range: Range | None = None

    @property
    def activation(self) -> Activation | None:
        """The way in which the input is rounded, if it is."""
        return self.range or self.scheme.activation

    @property
    def calibrated(self) -> Range:
        """The range of the input, which a scheme with a static scale comes with."""
        if self.range is None:
            raise InternalError(f"a site in '{self.scheme.name}' was planned without a range")
        return self.range


def give_plan(node: ir.Node, plan: Plan) -> None:
    """Plan an operator, in place of an earlier plan."""
    node.meta[PLAN] = plan
    node.metadata_props[SCHEME] = plan.scheme.name


def plan_of(node: ir.Node) -> Plan | None:
    """The plan of an operator; ``None`` where it computes as it stands."""
    return node.meta.get(PLAN)


def planned(model: ir.Model) -> list[tuple[ir.Node, Plan]]:
    """Planned operators with their plans, in the order of the graph, those in bodies included."""
    found = ((node, plan_of(node)) for node in model.graph.all_nodes())
    return [(node, plan) for node, plan in found if plan is not None]


def give_range(node: ir.Node, within: Range) -> None:
    """Let all that reads the first result of an operator read it in a static range."""
    node.meta[RANGE] = within


def ranged(model: ir.Model) -> list[tuple[ir.Node, Range]]:
    """Operators whose first result has a static range, in the order of the graph."""
    return [(node, node.meta[RANGE]) for node in model.graph if RANGE in node.meta]


def drop_plans(model: ir.Model) -> None:
    """Let every operator compute as it stands; names of schemes go too, though they came with a file."""
    for node in model.graph.all_nodes():
        node.meta.pop(PLAN, None)
        node.meta.pop(RANGE, None)
        node.metadata_props.pop(SCHEME, None)
