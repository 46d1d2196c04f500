"""Translates a graph into statements of torch, node by node, through a table of operators."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir

from qcompile.ir.required import name_of, operand
from qcompile.operators import host
from qcompile.operators.call import Call, reads_more
from qcompile.operators.names import Names
from qcompile.operators.precision import Precision
from qcompile.operators.symbols import ARITHMETIC
from qcompile.operators.table import Table
from qcompile.operators.values import Values
from qcompile.shapes.evaluate import measured

__all__ = ["Program"]

_OPERAND = re.compile(r"\{(\d)(!t)?\}")

#: Operators whose further outputs the generated call does not return.
_SINGLE = {"LayerNormalization", "Attention", "MaxPool", "Dropout", "BatchNormalization", "RMSNormalization"}

_TRUTHS = {"And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor"}


class Program(Values):
    """The generated function of one graph.

    Args:
        model: the graph, fused and with our nodes in place.
        names: gives identifiers; those of packed weights and formats are taken already.
        table: the rows of operators.
        precision: the types that it computes in.
        runtime: what computes, for messages.
    """

    def __init__(self, model: ir.Model, names: Names, table: Table, precision: Precision, runtime: str) -> None:
        super().__init__(model.opset_imports.get("", 18), names, precision, runtime)
        self.table = table
        self.emit("device, dtype = self.device, self.dtype", ("device", "dtype"), tensors=False)
        self.inputs = [self._declare(value) for value in model.graph.inputs if not value.is_initializer()]
        self.emit_nodes(model.graph)
        self.results = [self.own(value) for value in model.graph.outputs]

    def _declare(self, value: ir.Value) -> str:
        name = self.names.make(name_of(value))
        self.let(value, name, value.dtype in self.precision.narrow)
        for axis, dim in enumerate(value.shape or ()):
            if not isinstance(dim, int) and dim.value is not None and dim.value not in self._dims:
                size = self._dims[dim.value] = self.names.make(dim.value)
                self.emit(f"{size} = {name}.shape[{axis}]", (size,), tensors=False)
        return name

    def emit_nodes(self, graph: ir.Graph) -> None:
        """Statements for every node of a graph, in order.

        Raises:
            TargetError: if an operator has no row, or its row cannot express a node.
        """
        for node in graph:
            for value in node.inputs:
                if value is not None and value.const_value is not None:
                    self.know(value)
            if not self._on_host(node):
                self._emit_node(node)

    # ---- shapes --------------------------------------------------------------------------------------------------

    def _on_host(self, node: ir.Node) -> bool:
        """Whether the host computes a node."""
        if (node.op_type, node.domain) == ("Constant", ""):
            node.outputs[0].const_value = ir.convenience.get_const_tensor(node.outputs[0])
            self.know(node.outputs[0])
            return True
        results = host.evaluate(node, [None if value is None else self.hosts.get(value) for value in node.inputs])
        if results is None and (node.op_type, node.domain) in (("Shape", ""), ("Size", "")):
            results = self._shape(node)
        if results is None:
            return False
        self.hosts |= dict(zip(node.outputs, results))
        return True

    def _shape(self, node: ir.Node) -> list[np.ndarray] | None:
        value = operand(node, 0)
        if value.shape is None:
            return None
        return [measured(node, len(value.shape), lambda axis: self.size(value, axis), ARITHMETIC)]

    # ---- everything else -----------------------------------------------------------------------------------------

    def _emit_node(self, node: ir.Node) -> None:
        row = self.table.get((node.domain if node.domain != "ai.onnx" else "", node.op_type))
        call = Call(self, node, self.precision.narrows(self, node))
        if row is None:
            raise call.refuse("the lowering table has no row for this operator")
        text = _fill(row, call) if isinstance(row, str) else row(call)
        if text is not None:  # else the row wrote its own statements
            targets = self.bind(node, call.narrow)
            self.emit(f"{', '.join(targets)} = {text}", targets)

    def bind(self, node: ir.Node, narrow: bool) -> tuple[str, ...]:
        """New variables for the outputs of a node."""
        values = node.outputs[:1] if node.op_type in _SINGLE and not reads_more(node) else node.outputs
        names = []
        for value in values:
            names.append(self.names.make(value.name or node.op_type))
            self.let(value, names[-1], narrow)
            kind = self._inferred(node) if value.dtype is None else None
            if kind is not None:
                value.dtype = kind
        return tuple(names)

    def _inferred(self, node: ir.Node) -> ir.DataType | None:
        """The type of an output that shape inference left open."""
        if node.op_type == "Cast":
            return ir.DataType(node.attributes["to"].as_int())
        if node.op_type in _TRUTHS:
            return ir.DataType.BOOL
        kinds = [self.kind(value) for value in node.inputs if value is not None]
        position = 1 if node.op_type == "Where" else 0
        return kinds[position] if len(kinds) > position else None


def _fill(template: str, call: Call) -> str:
    def operand(match: re.Match[str]) -> str:
        return call[int(match[1])] if match[2] else call.operand(int(match[1]))

    return _OPERAND.sub(operand, template)
