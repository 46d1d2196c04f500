"""Runs every rule over a graph: sites, spaces, freedoms."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.analysis import boundaries, rules  # noqa: F401  (they register rules)
from qcompile.analysis.spaces import Analysis, run
from qcompile.ir.tensors import holds_infinity

__all__ = ["analyze"]


def analyze(model: ir.Model, *, join_norms: bool = True) -> Analysis:
    """Run every node's rule, in order, over the main graph.

    Args:
        model: a graph with constants lifted to initializers and functions other than ours inlined.
        join_norms: whether the axis behind a normalization is the same space as the axis before it (its scale
            being folded away, they change basis together). Without it, each norm's output is a space of its own;
            the passes that fold scales ask for that.
    """
    analysis = Analysis(model, join_norms=join_norms)
    for value in model.graph.inputs:
        analysis.refs_or_none(value)
    run(analysis, model.graph)
    weights = [(site, site.weight.const_value) for site in analysis.sites]
    analysis.infinite = [site for site, tensor in weights if tensor is not None and holds_infinity(tensor)]
    analysis.sites = [site for site in analysis.sites if site not in analysis.infinite]
    for value in model.graph.outputs:
        analysis.axes.at = value
        analysis.freeze([value], f"'{value.name}' is an output of the graph")
    return analysis
