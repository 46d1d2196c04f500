"""``act(a) · b`` becomes one gate; ``a · sigmoid(a)`` one SiLU."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.backends.gpu.fusions.patterns import PRIVATE, commuted, made_by, put, same_shape, sole_reader
from qcompile.ir.graph import append_node, node_name
from qcompile.ir.required import graph_of, operand, producer_of

__all__ = ["fuse"]


def fuse(model: ir.Model) -> None:
    """Rewrite every gate of the main graph."""
    for node in list(model.graph):
        if node.op_type == "Mul" and node.domain == "":
            _silu(node)
    for node in list(model.graph):
        if node.op_type == "Mul" and node.domain == "":
            _gate(node)


def _silu(node: ir.Node) -> None:
    for a, other in commuted(node):
        sigmoid = made_by(other, "Sigmoid")
        if sigmoid is not None and sigmoid.inputs[0] is a:
            made = append_node(node, "Swish", [a], name=node_name(node), like=node.outputs[0])
            made.outputs[0].name = node.outputs[0].name
            ir.convenience.replace_all_uses_with(node.outputs[0], made.outputs[0], replace_graph_outputs=True)
            graph_of(node).remove(node, safe=True)
            return


def _gate(node: ir.Node) -> None:
    for activated, b in commuted(node):
        kind = _kind(activated.producer())
        if kind is None or sole_reader(activated) is not node:
            continue
        a = operand(producer_of(activated), 0)
        if same_shape(a, b):
            put(node, "Gate", [a, b], kind=kind)
            return


def _kind(node: ir.Node | None) -> str | None:
    if node is None or node.domain not in ("", PRIVATE):
        return None
    if node.op_type == "Gelu":
        return "gelu-tanh" if node.attributes.get_string("approximate", "none") == "tanh" else "gelu"
    if node.op_type == "Swish" and node.attributes.get_float("alpha", 1.0) != 1.0:
        return None
    return {"Swish": "silu", "Relu": "relu", "Sigmoid": "sigmoid"}.get(node.op_type)
