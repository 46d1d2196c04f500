"""Recurrent layers: the input is linear, hidden units may only change places."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.analysis.axes import Ref
from qcompile.analysis.rules.linear import contract
from qcompile.analysis.spaces import Analysis, rule
from qcompile.ir.graph import label
from qcompile.ir.required import optional
from qcompile.transforms.freedom import Freedom

__all__: list[str] = []

#: Gates of each operator.
_GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}


@rule(*_GATES)
def recurrent(analysis: Analysis, node: ir.Node) -> None:
    """``X [time, batch, input]``, ``W [directions, gates·hidden, input]``, ``R [directions, gates·hidden, hidden]``."""
    x, w, r = (list(analysis.refs(value)) for value in node.inputs[:3])
    gates, reason = _GATES[node.op_type], label(node)
    hidden = analysis.axes.size(r[2])
    if hidden is None or node.attributes.get_int("layout", 0) != 0 or "activations" in node.attributes:
        analysis.opaque(node, f"{reason} has an option that is not followed")
        return
    contract(analysis, x[2], w[2], reason)
    analysis.axes.constrain(r[2], Freedom.PERMUTATION, f"{reason} acts on each hidden unit")
    _units(analysis, node, w[1], gates, r[2])
    _units(analysis, node, r[1], gates, r[2])
    for i, count in ((3, 2 * gates), (7, 3)):  # biases, peepholes
        refs = analysis.refs_or_none(optional(node, i))
        if refs is not None:
            analysis.axes.constrain(refs[0], Freedom.NONE, f"{reason} has directions")
            _units(analysis, node, refs[1], count, r[2])
    for ref in (x[0], w[0], r[0]):
        analysis.axes.constrain(ref, Freedom.NONE, f"{reason} goes through time in order")
    _states(analysis, node, x[1], r[2])
    directions = analysis.axes.frozen(analysis.axes.size(w[0]), f"{reason} has directions")
    analysis.set(node.outputs[0], [x[0], directions, x[1], r[2]])
    for output in node.outputs[1:]:
        analysis.set(output, [directions, x[1], r[2]])


def _states(analysis: Analysis, node: ir.Node, batch: Ref, hidden: Ref) -> None:
    """First states ``[directions, batch, hidden]``; each sequence goes by itself."""
    reason = f"{label(node)} starts from it"
    analysis.axes.constrain(batch, Freedom.PERMUTATION, f"{label(node)} treats each sequence by itself")
    if optional(node, 4) is not None:
        analysis.axes.constrain(batch, Freedom.NONE, f"{label(node)} has a length for each sequence")
    for value in (optional(node, 5), optional(node, 6)):
        refs = analysis.refs_or_none(value)
        if refs is not None:
            analysis.axes.constrain(refs[0], Freedom.NONE, reason)
            analysis.axes.unify(batch, refs[1], reason)
            analysis.axes.unify(hidden, refs[2], reason)


def _units(analysis: Analysis, node: ir.Node, ref: Ref, count: int, hidden: Ref) -> None:
    """An axis of gates times hidden units."""
    parts = analysis.axes.as_product(ref, [count, analysis.axes.size(hidden)], label(node))
    if parts is None:
        analysis.axes.constrain(hidden, Freedom.NONE, f"{label(node)} has gates that cannot be followed")
        analysis.axes.constrain(ref, Freedom.NONE, f"{label(node)} has gates that cannot be followed")
        return
    analysis.axes.constrain(parts[0], Freedom.NONE, f"{label(node)} has gates")
    analysis.axes.unify(parts[1], hidden, f"{label(node)} acts on each hidden unit")
