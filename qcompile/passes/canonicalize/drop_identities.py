"""Drop identities: operators that change nothing go, but for those that give an output its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from qcompile.ir.required import graph_of, operand, rank_of
from qcompile.passes.state import State

__all__ = ["DropIdentities"]


@dataclass(frozen=True)
class DropIdentities:
    """Remove Identity, products with one and sums with zero, also from bodies."""

    name: ClassVar[str] = "drop-identities"

    def apply(self, state: State) -> bool:
        """Rewrite the readers of what such operators make."""
        changed = _drop_identities(state.model)
        if changed:
            state.edited()
        return changed


def _drop_identities(model: ir.Model) -> bool:
    dropped = False
    for node in list(model.graph.all_nodes()):
        kept = _kept_input(node)
        if kept is not None and not node.outputs[0].is_graph_output():
            ir.convenience.replace_all_uses_with(node.outputs[0], kept)
            graph_of(node).remove(node, safe=True)
            dropped = True
    return dropped


#: Operators that a number changes nothing in: the number, and whether the operands may be exchanged.
_NEUTRAL = {"Add": (0, True), "Sub": (0, False), "Mul": (1, True), "Div": (1, False), "Pow": (1, False)}


def _kept_input(node: ir.Node) -> ir.Value | None:
    """What a node passes on as it is: Identity, or products with one and sums with zero, which Paddle writes."""
    if node.op_type == "Identity" and not node.domain:
        return node.inputs[0]
    if node.op_type not in _NEUTRAL or node.domain or None in node.inputs:
        return None
    number, exchangeable = _NEUTRAL[node.op_type]
    for index in (0, 1) if exchangeable else (0,):
        kept, other = operand(node, index), operand(node, 1 - index)
        tensor = other.const_value
        if tensor is None or tensor.size != 1 or kept.shape is None or rank_of(other) > len(kept.shape):
            continue
        if kept.const_value is None and kept.dtype == other.dtype and tensor.numpy().item() == number:
            return kept
    return None
