"""Values that integer operators hand to each other: what convolutions write, and what pooling and sums make of that.

Runtimes compute a convolution, a sum or a pooling in integers if all that it reads and what it writes has a static
range. Where an operator only moves or picks values, both sides must have one range, so that it costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from qcompile.ir.graph import is_float

__all__ = ["ACTIVATIONS", "joined_values"]

#: Operators that a range takes over: its ends clip as they do.
ACTIVATIONS = frozenset({"Relu", "Clip"})

#: Operators that make new values, in integers if all that they read is.
JOINS = frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool"})

#: Operators whose results are values that they read.
MOVES = frozenset({"Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def joined_values(
    model: ir.Model, writers: Collection[ir.Node], readers: Collection[ir.Node]
) -> Mapping[ir.Value, ir.Value]:  # fmt: skip
    """The values of a graph that need a range besides what sites read, each with the value whose range it has.

    Args:
        writers: convolutions, whose results need one.
        readers: sites that read their input in a static range. What others make is joined only on its way to one.
    """
    found: dict[ir.Value, ir.Value] = {}
    for node in model.graph:
        out = node.outputs[0]
        if node in writers:
            end = behind(out)
            found[end] = end
        elif not node.domain and (out.dtype is None or is_float(out)) and _reaches(behind(out), readers):
            read = [value for value in node.inputs if value is not None]
            if node.op_type in MOVES and read[0] in found and len(node.outputs) == 1:
                found[out] = found[read[0]]
            elif node.op_type in JOINS and all(value in found for value in read):
                end = behind(out)
                found[end] = end
    return found


def behind(value: ir.Value) -> ir.Value:
    """The value behind the activations that alone read a value."""
    while len(uses := value.uses()) == 1 and not value.is_graph_output():
        ((node, index),) = uses
        if node.op_type not in ACTIVATIONS or node.domain or index:
            return value
        value = node.outputs[0]
    return value


def _reaches(value: ir.Value, readers: Collection[ir.Node]) -> bool:
    """Whether a value, through moves and joins alone, comes to one of some sites."""
    waiting, seen = [value], set[ir.Value]()
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        for node, _ in value.uses():
            if node in readers:
                return True
            if not node.domain and node.op_type in MOVES | JOINS | ACTIVATIONS:
                waiting.append(node.outputs[0])
    return False
