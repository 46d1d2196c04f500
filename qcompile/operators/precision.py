"""The floats that follow a program's dtype, and those that stay float32."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from qcompile.ir.required import operand
from qcompile.operators.protocol import Program

__all__ = ["MIXED", "ONE", "Precision"]

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_EVERY = (ir.DataType.FLOAT, ir.DataType.DOUBLE, *_HALVES)

_PRODUCTS = {"MatMul", "Gemm", "Einsum", "FusedMatMul"}
_RECURRENT = {"Loop", "Scan"}
_ALWAYS = {"Conv", "ConvTranspose", "Attention"}


@dataclass(frozen=True)
class Precision:
    """The types that a program computes in.

    Args:
        floats: types that share the program's dtype.
        narrow: those of inputs that are in the program's dtype from the start; others are float32.
        mixed: whether some nodes compute in float32 whatever the program's dtype is. What is computed from integers and
            constants alone (positions, masks, frequencies) does: bfloat16 cannot tell position 1000 from 1001. So do
            recurrences, whose rounding would add up. Sites, tables and what follows them are in the program's dtype.
        kernels: the domain of nodes that have kernels, which take the program's dtype.
    """

    floats: tuple[ir.DataType, ...]
    narrow: tuple[ir.DataType, ...]
    mixed: bool
    kernels: str | None = None

    def narrows(self, program: Program, node: ir.Node) -> bool:
        """Whether a node computes in the program's dtype."""
        return not self.mixed or node.domain == self.kernels or _narrows(program, node, self.floats)


#: Floats share the program's dtype, but for those that it would spoil.
MIXED = Precision((ir.DataType.FLOAT, *_HALVES), _HALVES, mixed=True)

#: Every float is in the program's dtype.
ONE = Precision(_EVERY, _EVERY, mixed=False)


def _narrows(program: Program, node: ir.Node, kinds: Collection[ir.DataType]) -> bool:
    if node.op_type in _RECURRENT:
        return False
    floats = [value for value in node.inputs if value is not None and program.kind(value) in kinds]
    if any(program.is_narrow(value) for value in floats):
        return True
    if node.op_type in _ALWAYS:
        return True
    if node.op_type in _PRODUCTS:
        return any(_is_matrix(value) for value in floats)
    return node.op_type == "Gather" and bool(floats) and _is_matrix(operand(node, 0))


def _is_matrix(value: ir.Value) -> bool:
    """A weight, as opposed to a vector of frequencies that is written as a matrix."""
    tensor = value.const_value
    return tensor is not None and sum(size > 1 for size in tensor.shape.numpy()) >= 2
