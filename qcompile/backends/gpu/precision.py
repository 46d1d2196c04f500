"""Which floats follow the program's dtype and which stay float32.

What is computed from integers and constants alone (positions, masks, frequencies) stays float32: bfloat16 cannot tell
position 1000 from 1001. So do recurrences, whose rounding would add up. Sites, tables and what follows them are in the
program's dtype.
"""

from __future__ import annotations

import onnx_ir as ir

from qcompile.backends.gpu.program import Program
from qcompile.ir.required import operand

__all__ = ["FLOATS", "HALVES", "narrows"]

#: Floats of 16 bits: inputs of these types are in the program's dtype from the start.
HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

#: Types that share the program's dtype.
FLOATS = (ir.DataType.FLOAT, *HALVES)

_PRODUCTS = {"MatMul", "Gemm", "Einsum"}
_RECURRENT = {"Loop", "Scan"}
_ALWAYS = {"Conv", "ConvTranspose", "Attention"}


def narrows(program: Program, node: ir.Node) -> bool:
    """Whether a node computes in the program's dtype."""
    if node.op_type in _RECURRENT:
        return False
    floats = [value for value in node.inputs if value is not None and program.kind(value) in FLOATS]
    if any(program.is_narrow(value) for value in floats):
        return True
    if node.domain == "gpu" or node.op_type in _ALWAYS:
        return True
    if node.op_type in _PRODUCTS:
        return any(_is_matrix(value) for value in floats)
    return node.op_type == "Gather" and bool(floats) and _is_matrix(operand(node, 0))


def _is_matrix(value: ir.Value) -> bool:
    """A weight, as opposed to a vector of frequencies that is written as a matrix."""
    tensor = value.const_value
    return tensor is not None and sum(size > 1 for size in tensor.shape.numpy()) >= 2
