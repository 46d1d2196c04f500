"""Norms, gates and modulations take in the transform and the quantization that follow them."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.backends.gpu.fusions.patterns import PRIVATE, put, sole_reader
from qcompile.ir.required import graph_of, operand

__all__ = ["absorb", "fuse"]


def fuse(model: ir.Model) -> None:
    """RMS norms of the last axis become nodes of ours."""
    for node in list(model.graph):
        if node.op_type == "RMSNormalization" and node.domain == "" and _last_axis(node):
            put(node, "RMSNorm", node.inputs[:2], epsilon=node.attributes.get_float("epsilon", 1e-5))


def _last_axis(node: ir.Node) -> bool:
    """Whether a norm runs over the last axis with one weight for each element of it."""
    axis, shape, weight = node.attributes.get_int("axis", -1), operand(node, 0).shape, operand(node, 1).shape
    if weight is None or len(weight) != 1:
        return False
    return axis == -1 or shape is not None and axis == len(shape) - 1


def absorb(model: ir.Model) -> None:
    """First a transform takes in the quantization behind it, then the elementwise node before it takes in both."""
    for node in list(model.graph):
        if node.domain == PRIVATE and node.op_type == "Transform":
            _take(node, "Quantize", {"activation": "activation"})
    for node in list(model.graph):
        if node.domain == PRIVATE and node.op_type in ("RMSNorm", "Gate", "Modulate"):
            _take(node, "Transform", {"object": "transform", "activation": "activation"})
            _take(node, "Quantize", {"activation": "activation"})


def _take(node: ir.Node, op: str, renamed: dict[str, str]) -> None:
    """Let a node do the work of its only reader; attributes move over under their new names."""
    reader = sole_reader(node.outputs[0])
    if reader is None or (reader.op_type, reader.domain) != (op, PRIVATE) or "activation" in node.attributes:
        return
    for name, new in renamed.items():
        if name in reader.attributes:
            node.attributes.add(ir.AttrString(new, reader.attributes.get_string(name)))
    value, result = reader.outputs[0], node.outputs[0]
    result.shape, result.type = value.shape, value.type
    ir.convenience.replace_all_uses_with(value, result, replace_graph_outputs=True)
    graph_of(reader).remove(reader, safe=True)
