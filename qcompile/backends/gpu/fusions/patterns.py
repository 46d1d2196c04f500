"""Helpers with which the fusions look at a graph and edit it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir

from qcompile.ir.graph import append_node, node_name
from qcompile.ir.required import graph_of, operands

__all__ = ["PRIVATE", "commuted", "made_by", "number", "put", "same_shape", "sole_reader"]

#: The domain of nodes that exist between fusion and code generation only.
PRIVATE = "gpu"


def made_by(value: ir.Value | None, op: str, domain: str = "") -> ir.Node | None:
    """The node that computes a value, if it is of that operator."""
    node = None if value is None else value.producer()
    return node if node is not None and (node.op_type, node.domain) == (op, domain) else None


def sole_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value, if nothing else does."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    return next(iter(uses)).node


def commuted(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """The two inputs in both orders."""
    a, b = operands(node)
    yield a, b
    yield b, a


def number(value: ir.Value | None) -> float | None:
    """The one element of a constant."""
    tensor = None if value is None else value.const_value
    return float(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether two values are known to have the same shape."""
    return (
        a.shape is not None
        and b.shape is not None
        and a.shape == b.shape
        and all(isinstance(dim, int) or dim.value is not None for dim in a.shape)
    )


def put(old: ir.Node, op: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Node:
    """A node of ours in the place of another, whose first output it takes over."""
    value = old.outputs[0]
    node = append_node(old, op, inputs, attributes, name=node_name(old), domain=PRIVATE, like=value)
    node.outputs[0].name = value.name
    ir.convenience.replace_all_uses_with(value, node.outputs[0], replace_graph_outputs=True)
    graph_of(old).remove(old, safe=True)
    return node
