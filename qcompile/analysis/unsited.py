"""Constants in words: their use, by the operator that reads them, and why those that are no sites are none."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qcompile.analysis.packed_weights import format_of, is_codes, is_packed
from qcompile.analysis.rules.normalization import SCALED_NORMS

__all__ = ["kind_of", "reason_of"]

#: A place where a constant is read: the operator, and which of its operands it is.
Use = tuple[ir.Node, int]

_RECURRENT = ("LSTM", "GRU", "RNN")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_PRODUCTS = ("MatMul", "Gemm", "Einsum", "FusedMatMul")
_LOOKUPS = ("Gather", "GatherND", "GatherElements", "EmbedLayerNormalization")
_SUMS = ("Add", "Sub", "Mul", "Div", "Where", "Pow", "Max", "Min", "PRelu")


def kind_of(tensor: ir.TensorProtocol, uses: Sequence[Use]) -> str:
    """The use of a constant in a word or two, by the first operator that reads it."""
    if not uses:
        return "constant"
    (node, place), rank = uses[0], len(tensor.shape.numpy())
    if is_packed(node):
        return "packed codes" if is_codes(tensor.dtype) and not _is_zero_point(node, place) else "packed scales"
    if node.op_type in _RECURRENT:
        return f"{node.op_type} {_recurrent_operand(place)}"
    if node.op_type in _CONVOLUTIONS:
        return _kernel(node, tensor) if place == 1 else "bias"
    if (node.domain, node.op_type) in SCALED_NORMS or node.op_type.endswith("Normalization"):
        return "norm parameters"
    if node.op_type in _PRODUCTS:
        return "bias" if rank < 2 else "matrix" if rank == 2 else "stack of matrices"
    return {**dict.fromkeys(_LOOKUPS, "table"), **dict.fromkeys(_SUMS, "operand")}.get(node.op_type, "constant")


def _recurrent_operand(place: int) -> str:
    return {1: "input weights", 2: "recurrent weights"}.get(place, "biases")


def _is_zero_point(node: ir.Node, place: int) -> bool:
    """Whether an operand of codes is the grid of others: it follows a scale."""
    return place >= 2 and node.op_type in ("DequantizeLinear", "MatMulNBits", "GatherBlockQuantized", "MatMulInteger")


def _kernel(node: ir.Node, tensor: ir.TensorProtocol) -> str:
    groups = node.attributes.get_int("group", 1)
    if groups == 1:
        return "convolution kernel"
    return "depthwise kernel" if groups == tensor.shape.numpy()[0] else "grouped kernel"


def reason_of(uses: Sequence[Use], output: bool) -> str:
    """Why a constant that is read in those places cannot be quantized there; for one of no place, that there is none.

    Args:
        uses: where no site reads it.
        output: whether it is an output of the graph.
    """
    if output:
        return "it is an output of the graph"
    if not uses:
        return "no operator reads it as it is: it is folded into others, or not needed"
    return "; ".join(dict.fromkeys(_of_node(node) for node, _ in uses[:3]))


def _of_node(node: ir.Node) -> str:
    if is_packed(node):
        return f"{node.op_type} reads it quantized already ({format_of(node)})"
    if node.op_type in _RECURRENT:
        return f"{node.op_type} weights are no sites: no target computes recurrent layers with quantized weights"
    if node.op_type in _PRODUCTS:
        return f"{node.op_type} makes no product of an activation with it that is a site"
    if node.op_type in _LOOKUPS:
        return f"{node.op_type} looks up no rows of a matrix in it, or not by what is computed"
    return f"{node.op_type} is no linear map"
