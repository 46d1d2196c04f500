"""Rewrites pairs of QuantizeLinear and DequantizeLinear to integer operators: floats are left at both ends alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.backends.ort.emitter import Emitter
from qcompile.backends.ort.integer_only.numbers import Joined, Number, Table, Term, quantize
from qcompile.errors import TargetError
from qcompile.ir.functions import DOMAIN
from qcompile.ir.graph import drop_unused, label
from qcompile.ir.required import constant, name_of, operand, producer_of, sizes_of

__all__ = ["AnyNumber", "Integers", "Operator", "Weight", "rewrite"]

#: A float value as integers.
AnyNumber = Number | Table | Joined


@dataclass(frozen=True)
class Weight:
    """Constant codes, ``scale · codes``.

    Args:
        value: the constant.
        codes: what it holds.
        scale: float64, a single one or that of each output channel.
    """

    value: ir.Value
    codes: np.ndarray
    scale: np.ndarray


class Integers:
    """One rewriting under way: what is known of float values."""

    def __init__(self, emit: Emitter) -> None:
        self.emit = emit
        self.known: dict[ir.Value, AnyNumber] = {}

    def read(self, node: ir.Node, index: int) -> AnyNumber:
        """An operand as integers.

        Raises:
            TargetError: if nothing has quantized it.
        """
        value = operand(node, index)
        if value not in self.known:
            for reader, _ in value.uses():  # an input of the graph, which a site reads quantized
                if reader.op_type == "QuantizeLinear":
                    return self._dequantized(operand(reader, 0), reader)
            raise TargetError(
                f"{label(node)} reads '{value.name}', which has no static range: it is not computed in integers"
            )
        return self.known[value]

    def codes(self, node: ir.Node, index: int) -> Term:
        """An operand as codes of 8 bits.

        Raises:
            TargetError: if it is something else.
        """
        number = self.read(node, index)
        if not isinstance(number, Number) or not number.plain or not number.terms[0].codes:
            raise TargetError(f"{label(node)} reads '{operand(node, index).name}', which is not in codes of 8 bits")
        return number.terms[0]

    def weight(self, node: ir.Node, index: int) -> Weight | None:
        """An operand as constant codes, ``None`` for another; vectors are no sites, and are rounded to nearest here."""
        value = node.inputs[index] if len(node.inputs) > index else None
        made = None if value is None else value.producer()
        if made is not None and made.op_type == "DequantizeLinear" and operand(made, 0).const_value is not None:
            scale = constant(operand(made, 1)).numpy().astype(np.float64)
            return Weight(operand(made, 0), constant(operand(made, 0)).numpy(), scale)
        if index == 2 or value is None or value.const_value is None or sum(size > 1 for size in sizes_of(value)) > 1:
            return None
        values = constant(value).numpy().astype(np.float64)
        scale = np.asarray(np.abs(values).max() / 127 or 1.0)
        codes = np.round(values / scale).astype(np.int8)
        return Weight(self.emit.constant(f"{name_of(value)}.codes", codes), codes, scale)

    def zero(self, term: Term) -> ir.Value:
        """The code of zero, as a constant of the type of the value."""
        dtype = term.value.dtype or ir.DataType.UINT8
        return self.emit.constant(f"qcompile.zero_{term.zero}", np.array(term.zero, dtype.numpy()))

    def summed(self, node: ir.Node, number: Number) -> Term:
        """A number of one term, its constant in steps of that."""
        (term,) = number.terms
        if not number.offset.any():
            return term
        steps = np.round(number.offset / term.scale).astype(np.int32)
        wide = self.op(node, "Cast", ir.DataType.INT32, term.value, to=int(ir.DataType.INT32))
        added = self.emit.constant(f"{name_of(node.outputs[0])}.steps", np.asarray(steps))
        return replace(term, value=self.op(node, "Add", ir.DataType.INT32, wide, added))

    def op(self, node: ir.Node, op: str, dtype: ir.DataType, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """A new operator in front of another, whose result has that type."""
        made = self.emit.op(node, op, *inputs, hint=f"{name_of(node.outputs[0])}/{op}", **attributes)
        made.type = ir.TensorType(dtype)
        return made

    def _dequantized(self, of: ir.Value, pair: ir.Node) -> Number:
        """What the codes of a pair stand for."""
        scale, zero = (constant(operand(pair, index)).numpy() for index in (1, 2))
        codes = pair.outputs[0] if pair.op_type == "QuantizeLinear" else operand(pair, 0)
        codes.type = ir.TensorType(ir.DataType.from_numpy(zero.dtype))
        return Number((Term(codes, int(zero), scale.astype(np.float64)),))

    def visit(self, node: ir.Node, operators: Mapping[str, Operator]) -> None:
        """Take in what a node computes."""
        if node.op_type == "DequantizeLinear":
            if operand(node, 0).const_value is None:
                self.known[node.outputs[0]] = self._dequantized(node.outputs[0], node)
        elif node.op_type == "QuantizeLinear":
            if (value := operand(node, 0)) in self.known:
                self._quantize(node, self.known[value])
        elif node.op_type == "Shape":
            if (value := operand(node, 0)) in self.known:
                node.replace_input_with(0, _carrier(self.known[value], node))
        elif any(value in self.known for value in node.inputs if value is not None):
            if node.domain not in ("", DOMAIN) or node.op_type not in operators:
                raise TargetError(f"{label(node)} is not computed in integers")
            self.known |= dict(zip(node.outputs, operators[node.op_type](self, node), strict=False))

    def _quantize(self, node: ir.Node, number: AnyNumber) -> None:
        zero = constant(operand(node, 2)).numpy()
        scale, dtype = float(constant(operand(node, 1)).numpy()), ir.DataType.from_numpy(zero.dtype)
        made = quantize(self.emit, node, number, scale, int(zero), dtype, name_of(node.outputs[0]))
        ir.convenience.replace_all_uses_with(node.outputs[0], made)

    def finish(self, output: ir.Value) -> ir.Value:
        """An output of the graph, dequantized.

        Raises:
            TargetError: if it is more than one scaled integer.
        """
        node, number = producer_of(output), self.known[output]
        if not isinstance(number, Number) or len(number.terms) != 1 or np.isfinite([number.low, number.high]).any():
            raise TargetError(f"the output '{output.name}' has no static range")
        term = self.summed(node, number)
        value, scale = term.value, term.scale.astype(np.float32)
        operands = [
            value,
            self.emit.constant(f"{output.name}.scale", scale.reshape(-1) if scale.size > 1 else scale.reshape(())),
        ]
        if term.zero:
            operands.append(self.zero(term))
        axis: dict[str, Any] = {"axis": int(np.argmax(scale.shape)) - scale.ndim} if scale.size > 1 else {}
        return self.emit.op(node, "DequantizeLinear", *operands, hint=f"{output.name}/value", **axis)


def _carrier(number: AnyNumber, node: ir.Node) -> ir.Value:
    """Integers that have the shape of a value."""
    if isinstance(number, Table):
        return number.codes
    if isinstance(number, Joined) or len(number.terms) != 1:
        raise TargetError(f"{label(node)} asks for the shape of what has no static range")
    return number.terms[0].value


#: What an operator computes, as integers, of what it reads.
Operator = Callable[[Integers, ir.Node], list[AnyNumber]]


def rewrite(emit: Emitter, operators: Mapping[str, Operator]) -> None:
    """Compute everything between the first quantization and the last dequantization in integers.

    Args:
        emit: of a graph with pairs; it is edited.
        operators: those that can be.

    Raises:
        TargetError: naming an operator that cannot.
    """
    work, graph = Integers(emit), emit.model.graph
    emit.at(graph[0])
    for node in list(graph):
        work.visit(node, operators)
    for index, output in enumerate(list(graph.outputs)):
        if output in work.known:
            made, name = work.finish(output), name_of(output)
            made.shape, made.type = output.shape, output.type
            output.name, made.name = None, name
            graph.outputs[index] = made
    drop_unused(emit.model)
