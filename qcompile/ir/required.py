"""Parts of a graph that must be there: each function returns one, or says which node or value lacks it."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.errors import InternalError

__all__ = [
    "constant", "dtype_of", "graph_of", "name_of", "operand", "operands", "optional", "producer_of", "rank_of",
    "shape_of", "sizes_of",
]  # fmt: skip


def optional(node: ir.Node, index: int) -> ir.Value | None:
    """An input of a node, ``None`` if it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def operand(node: ir.Node, index: int) -> ir.Value:
    """An input that a node cannot do without."""
    found = optional(node, index)
    if found is None:
        raise InternalError(f"{node.op_type} '{node.name}' has no input {index}")
    return found


def operands(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node that can do without none of them."""
    return [operand(node, index) for index in range(len(node.inputs))]


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph, or the body, that a node stands in."""
    if node.graph is None:
        raise InternalError(f"{node.op_type} '{node.name}' stands in no graph")
    return node.graph


def producer_of(value: ir.Value) -> ir.Node:
    """The node that makes a value."""
    node = value.producer()
    if node is None:
        raise InternalError(f"no node makes '{value.name}'")
    return node


def name_of(value: ir.Value) -> str:
    """The name of a value; values of a graph that was canonicalized have one."""
    if value.name is None:
        raise InternalError(f"a value of type {value.type} has no name")
    return value.name


def shape_of(value: ir.Value) -> ir.Shape:
    """The shape of a value of known rank."""
    if value.shape is None:
        raise InternalError(f"the rank of '{value.name}' is not known")
    return value.shape


def rank_of(value: ir.Value) -> int:
    """The number of axes of a value of known rank."""
    return len(shape_of(value))


def sizes_of(value: ir.Value) -> tuple[int, ...]:
    """The sizes of all axes of a value: of a constant, or of another one whose shape is static."""
    shape = shape_of(value)
    sizes = tuple([dim for dim in shape if isinstance(dim, int)])
    if len(sizes) < len(shape):
        raise InternalError(f"'{value.name}' has shape {shape}, which is not static")
    return sizes


def dtype_of(value: ir.Value) -> ir.DataType:
    """The type of a value's elements."""
    if value.dtype is None:
        raise InternalError(f"the type of '{value.name}' is not known")
    return value.dtype


def constant(value: ir.Value) -> ir.TensorProtocol:
    """The content of a constant."""
    if value.const_value is None:
        raise InternalError(f"'{value.name}' is not constant")
    return value.const_value
