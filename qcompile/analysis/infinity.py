"""Where there may be infinity: behind constants that hold it, along the axes that it is not mixed out of."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.analysis.axes import Ref
from qcompile.analysis.spaces import Analysis
from qcompile.ir.graph import bodies
from qcompile.ir.tensors import holds_infinity

__all__ = ["infinity"]


def infinity(analysis: Analysis, value: ir.Value | None, ref: Ref | None) -> str | None:
    """The reason why there may be infinity along an axis of a value, ``None`` if there is none."""
    if value is None or ref is None or not analysis.mixed or value not in _reached(analysis):
        return None
    found = (analysis.mixed & leaf.node.reasons for leaf in analysis.axes.leaves(ref))
    return next((min(reasons) for reasons in found if reasons), None)


def _reached(analysis: Analysis) -> set[ir.Value]:
    """All values that are computed from a constant that holds infinity, those of bodies included."""
    outer = {inner: node for node in analysis.model.graph for body in bodies(node) for inner in body.all_nodes()}
    constants = [(value, value.const_value) for value in analysis.refs_of]
    queue = [value for value, tensor in constants if tensor is not None and holds_infinity(tensor)]
    reached = set(queue)
    while queue:
        readers = [found for node, _ in queue.pop().uses() for found in {node, outer.get(node, node)}]
        within = [inner for node in readers for body in bodies(node) for inner in body.all_nodes()]
        new = {made for node in (*readers, *within) for made in node.outputs} - reached
        reached |= new
        queue += new
    return reached
