"""Graphs as text for people: ONNX's textual syntax, in which large constants are declared but not written out."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, TypeVar

import onnx_ir as ir

from qcompile.errors import QCompileError

if TYPE_CHECKING:
    import onnx

__all__ = ["graph_text", "refusal", "text_around"]

#: Constants of more elements than this are declared alone.
SHOWN = 6

WIDTH = 120


def graph_text(model: ir.Model) -> str:
    """A graph in ONNX's textual syntax; what was elided from it is a value that no operator makes."""
    import onnx.printer

    shown = model.clone()
    for graph in shown.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.size > SHOWN:  # not to be read, let alone computed
                value.const_value = _placeholder(value.const_value)
    proto = ir.to_proto(shown)
    _elide(proto.graph)
    lines = onnx.printer.to_text(proto).splitlines()
    return "\n".join(_wrapped(line.rstrip()) for line in lines).strip() + "\n"


def text_around(node: ir.Node) -> str:
    """A node between those that it reads from and those that read it, one a line, with an arrow in front of it."""
    before = [value.producer() for value in node.inputs if value is not None]
    behind = [reader for value in node.outputs for reader in value.consumers()]
    shown = dict.fromkeys(found for found in (*before, node, *behind) if found is not None)
    return "\n".join(f"{'->' if found is node else '  '} {_node_text(found)}" for found in shown)


_Error = TypeVar("_Error", bound=QCompileError)


def refusal(kind: type[_Error], sentence: str, node: ir.Node, **parts: str) -> _Error:
    """The error about a node that a stage cannot take, with a note that shows the nodes around it.

    Args:
        kind: of the error.
        sentence: names the stage, and has places for ``{op}``, ``{name}`` and the parts.
    """
    op = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    error = kind(sentence.format(op=op, name=node.name or node.outputs[0].name, **parts))
    error.add_note(text_around(node))
    return error


def _node_text(node: ir.Node) -> str:
    import onnx.printer

    proto = ir.to_proto(node)
    _elide_attributes(proto)
    return onnx.printer.to_text(proto).strip()


def _placeholder(tensor: ir.TensorProtocol) -> ir.ExternalTensor:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor("elided", None, None, tensor.dtype, shape=shape, name=tensor.name or "")


def _elide(graph: onnx.GraphProto) -> None:
    """Leave of large constants of a graph and its bodies nothing but their types."""
    kept = [tensor for tensor in graph.initializer if not tensor.external_data and _is_small(tensor)]
    names = {tensor.name for tensor in kept}
    declared = [info for info in graph.value_info if info.name not in names]
    for field, items in ((graph.initializer, kept), (graph.value_info, declared)):
        del field[:]
        field.extend(items)
    for node in graph.node:
        _elide_attributes(node)


def _elide_attributes(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            _elide(attribute.g)
        elif attribute.HasField("t") and not _is_small(attribute.t):
            attribute.t.CopyFrom(type(attribute.t)(dims=attribute.t.dims, data_type=attribute.t.data_type))


def _is_small(tensor: onnx.TensorProto) -> bool:
    return math.prod(tensor.dims) <= SHOWN


def _wrapped(line: str) -> str:
    """A line, broken between declarations where it is a long list of them."""
    start = line.lstrip()
    if not start.startswith("<"):
        return line
    indent = line[: len(line) - len(start)]
    whole = ", ".join(part.replace("=  {", "= {").replace(" ", "\0") for part in start.split(", "))
    broken = textwrap.fill(
        whole, WIDTH, initial_indent=indent, subsequent_indent=f"{indent} ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return broken.replace("\0", " ")
