"""Plans single sites, for tests of backends."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from qcompile.formats import quantize
from qcompile.formats.static import Range
from qcompile.ir.graph import node_name
from qcompile.targets.plans import Plan, give_plan
from qcompile.targets.scheme import Scheme

__all__ = ["node_named", "plan_site"]


def node_named(model: ir.Model, name: str) -> ir.Node:
    """The one operator of that name, which may stand in a body."""
    (node,) = [node for node in model.graph.all_nodes() if node_name(node) == name]
    return node


def plan_site(model: ir.Model, name: str, rows: np.ndarray, scheme: Scheme | str) -> Plan:
    """Plan an operator with a weight ``[out, in]`` rounded to nearest, and return the plan.

    Static scales have the range from -3 to 3.
    """
    parsed = Scheme.parse(scheme) if isinstance(scheme, str) else scheme
    weight = quantize(torch.from_numpy(np.array(rows, np.float32, order="C")), parsed.weight)
    within = Range.spanning(parsed.activation, -3.0, 3.0) if parsed.static else None
    plan = Plan(parsed, weight, within)
    give_plan(node_named(model, name), plan)
    return plan
