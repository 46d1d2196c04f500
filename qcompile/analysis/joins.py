"""Values that integer operators hand to each other: what convolutions write, and what pooling and sums make of that.

Runtimes compute a convolution, a sum or a pooling in integers if all that it reads and what it writes has a static
range. Where an operator only moves or picks values, both sides must have one range, so that it costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from qcompile.ir.graph import is_float
from qcompile.ir.required import operand
from qcompile.operators.sorts import MOVES, POINTWISE

__all__ = ["all_values", "joined_values"]

#: Operators that a range takes over: its ends clip as they do.
ACTIVATIONS = frozenset({"Relu", "Clip"})

#: Activations that are two scales of one value.
SLOPES = frozenset({"LeakyRelu", "PRelu"})

#: Operators that make new values, in integers if all that they read is.
JOINS = frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool"})

#: Operators whose results may be handed out as they are: sums of products.
PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})


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
            if _moves(node) and read[0] in found:
                found[out] = found[read[0]]
            elif node.op_type in JOINS and all(value in found for value in read):
                end = behind(out)
                found[end] = end
    return found


def all_values(model: ir.Model) -> Mapping[ir.Value, ir.Value]:
    """The values of a graph that need a range where all is computed in integers, each with the one whose range it has.

    A function of one value in a range needs none where only further functions of that value read it, nor does a product
    that is handed out.
    """
    found: dict[ir.Value, ir.Value] = {}
    roots: dict[ir.Value, ir.Value] = {}
    for node in model.graph:
        out = node.outputs[0]
        read = [value for value in node.inputs if value is not None and is_float(value) and value.const_value is None]
        if out in found or not is_float(out) or not read:
            continue
        root = _root(node, roots)
        if _moves(node) and read[0] in found:
            found[out] = found[read[0]]
        elif node.op_type == "Split" or _moves(node) or (node.op_type in PRODUCTS and not out.uses()):
            continue
        elif root in found:
            roots[out] = root
            if out.is_graph_output() or any(_root(reader, roots) is not root for reader, _ in out.uses()):
                found[out] = out
        else:
            end = _settled(out)
            found[end] = end
    return found


def _settled(value: ir.Value) -> ir.Value:
    """The value behind the constants and the activations that alone take a sum further, in that order."""
    while len(uses := value.uses()) == 1 and not value.is_graph_output():
        ((node, _),) = uses
        if not _is_affine(node):
            break
        value = node.outputs[0]
    end = behind(value, SLOPES)
    return behind(value) if end is value else end


def _is_affine(node: ir.Node) -> bool:
    """Whether an operator adds a constant, or multiplies with one that is above zero."""
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or node.domain:
        return False
    constants = [value.const_value for value in node.inputs if value is not None and value.const_value is not None]
    if len(constants) != 1 or (node.op_type == "Div" and operand(node, 1).const_value is None):
        return False
    return node.op_type in ("Add", "Sub") or bool((constants[0].numpy() > 0).all())


def _root(node: ir.Node, roots: Mapping[ir.Value, ir.Value]) -> ir.Value | None:
    """The value that an operator is a function of, element by element."""
    if node.op_type not in POINTWISE or node.domain:
        return None
    found = set[ir.Value]()
    for value in node.inputs:
        if value is None:
            continue
        if value.const_value is None:
            found.add(roots.get(value, value))
        elif value.const_value.size > 1:
            return None
    return found.pop() if len(found) == 1 else None


def _moves(node: ir.Node) -> bool:
    """Whether results of an operator are values that it reads first."""
    nearest = node.op_type != "Resize" or node.attributes.get_string("mode", "nearest") == "nearest"
    return node.op_type in MOVES and not node.domain and len(node.outputs) == 1 and nearest


def behind(value: ir.Value, activations: Collection[str] = ACTIVATIONS) -> ir.Value:
    """The value behind the activations that alone read a value."""
    while len(uses := value.uses()) == 1 and not value.is_graph_output():
        ((node, index),) = uses
        if node.op_type not in activations or node.domain or index:
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
