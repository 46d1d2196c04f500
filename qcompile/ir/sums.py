"""Products that are made of two: the weight of an operator as a sum, of which another operator has one part."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.ir.graph import append_node
from qcompile.ir.required import operand

__all__ = ["add_beside", "inseparable", "product_like"]


def inseparable(node: ir.Node, *, edge: bool = False) -> str | None:
    """Why the weight of an operator cannot become a sum of two; ``None`` if it can: a product of features with it.

    Args:
        edge: whether it may write an output of the graph, because nothing is added behind it.
    """
    if node.op_type not in ("MatMul", "Gemm") or node.domain:
        return f"{node.op_type} is no plain product with a matrix"
    weight = operand(node, 1)
    if weight.const_value is None or len(weight.const_value.shape.numpy()) != 2:
        return "its weight is no constant matrix on the right"
    if node.attributes.get_int("transA", 0) or node.attributes.get_float("alpha", 1.0) != 1.0:
        return "it transposes or scales what it reads"
    if len(list(weight.uses())) > 1 or weight.is_graph_output():
        return f"its weight '{weight.name}' is read elsewhere, too"
    if node.outputs[0].is_graph_output() and not edge:
        return "it writes an output of the graph"
    return None


def product_like(node: ir.Node, x: ir.Value, weight: ir.Value, name: str) -> ir.Value:
    """A product with another weight in the layout of that of ``node``, put in front of it, without a bias.

    It is of the same module, and has no shape yet.
    """
    kept = {key: attribute.value for key, attribute in node.attributes.items() if key != "beta"}
    made = append_node(node, node.op_type, [x, weight], kept, name=name)
    made.metadata_props.update(node.metadata_props)
    made.outputs[0].type = node.outputs[0].type
    return made.outputs[0]


def add_beside(node: ir.Node, other: ir.Value) -> None:
    """Let what read the result of a node read its sum with another value, which is made in front of the node."""
    own = node.outputs[0]
    readers = list(own.uses())
    other.shape = own.shape
    total = append_node(node, "Add", [own, other], name=f"{other.name}_added", like=own, after=True)
    for reader, index in readers:
        reader.replace_input_with(index, total.outputs[0])
