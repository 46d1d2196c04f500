"""Split norms: onnxruntime's norms of a sum become the sum and the norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from qcompile.ir.graph import append_node, is_read
from qcompile.ir.norms import make_norm
from qcompile.ir.required import graph_of, operand
from qcompile.passes.state import State

__all__ = ["SplitNorms"]

#: onnxruntime's norms of a sum: whether they subtract the mean.
_SKIPS = {"SkipLayerNormalization": True, "SkipSimplifiedLayerNormalization": False}


@dataclass(frozen=True)
class SplitNorms:
    """Put onnxruntime's norms of a sum apart into the sum, which others may read, and the norm."""

    name: ClassVar[str] = "split-norms"

    def apply(self, state: State) -> bool:
        """Rewrite norms of the main graph."""
        changed = [_split(state.model, node) for node in list(state.model.graph)]
        if any(changed):
            state.edited()
        return any(changed)


def _split(model: ir.Model, node: ir.Node) -> bool:
    """Put a norm of a sum apart into the sum, which others may read, and the norm; whether it was one."""
    if node.domain != "com.microsoft" or node.op_type not in _SKIPS or any(is_read(node, i) for i in (1, 2)):
        return False
    centered = _SKIPS[node.op_type]
    x, skip, scale, rest = operand(node, 0), node.inputs[1], operand(node, 2), list(node.inputs[3:])
    shift = rest.pop(0) if centered and rest else None
    for name, term in zip(("sum", "bias"), (skip, *rest), strict=False):
        if term is not None:
            x = append_node(node, "Add", [x, term], name=f"{node.name}_{name}", like=x).outputs[0]
    epsilon = node.attributes.get_float("epsilon", 1e-12)
    made = make_norm(model, node, x, scale, shift, epsilon, centered=centered, name=f"{node.name}_norm", like=x)
    for old, new in ((node.outputs[0], made.outputs[0]), *((value, x) for value in node.outputs[3:])):
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph_of(node).remove(node, safe=True)
    return True
