"""Operators whose weights were quantized before: which operands hold codes, and in which format."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from qcompile.ir.required import optional

__all__ = ["format_of", "is_codes", "is_packed"]

_MICROSOFT = "com.microsoft"

#: Operators with quantized operands: codes of at most eight bits, and their scales and zero points.
_PACKED = {
    *(("", op) for op in ("DequantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul")),
    *((_MICROSOFT, op) for op in ("DequantizeLinear", "MatMulNBits", "MatMulBnb4", "GatherBlockQuantized")),
    *((_MICROSOFT, op) for op in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QGemm", "QAttention", "QMoE")),
    *((_MICROSOFT, op) for op in ("DynamicQuantizeLSTM", "QEmbedLayerNormalization", "MatMulInteger16")),
}


def is_packed(node: ir.Node) -> bool:
    """Whether an operator computes with quantized operands."""
    return (node.domain, node.op_type) in _PACKED or (node.domain == _MICROSOFT and node.op_type.startswith("QLinear"))


def is_codes(dtype: ir.DataType | None) -> bool:
    """Whether numbers of a type may be codes: integers and floats of at most eight bits."""
    return dtype is not None and dtype != ir.DataType.BOOL and dtype != ir.DataType.STRING and dtype.bitwidth <= 8


def format_of(node: ir.Node) -> str:
    """The format of the codes that a packed operator reads, as its attributes and types tell it."""
    return _FORMATS.get(node.op_type, _by_type)(node)


def _nbits(node: ir.Node) -> str:
    sign = "int" if optional(node, 3) is None else "uint"
    blocks = 128 if node.op_type == "GatherBlockQuantized" else 0
    return f"{sign}{node.attributes.get_int('bits', 4)}-g{node.attributes.get_int('block_size', blocks)}"


def _bnb4(node: ir.Node) -> str:
    element = "nf4" if node.attributes.get_int("quant_type", 1) else "fp4"
    return f"{element}-g{node.attributes.get_int('block_size', 0)}"


def _grid(node: ir.Node) -> str:
    """Codes with one scale for all, one for each place on an axis, or one for each block."""
    scale = optional(node, 1)
    blocks = node.attributes.get_int("block_size", 0)
    if blocks:
        return f"{_by_type(node)}-g{blocks}"
    one = scale is None or scale.const_value is None or scale.const_value.size == 1
    return f"{_by_type(node)}-{'tensor' if one else 'channel'}"


def _by_type(node: ir.Node) -> str:
    constants = [v for v in node.inputs if v is not None and v.const_value is not None and is_codes(v.dtype)]
    largest = max(constants, key=lambda value: value.const_value.nbytes if value.const_value else 0, default=None)
    return "unknown" if largest is None or largest.dtype is None else largest.dtype.numpy().name


_FORMATS: dict[str, Callable[[ir.Node], str]] = {
    "MatMulNBits": _nbits, "GatherBlockQuantized": _nbits, "MatMulBnb4": _bnb4, "DequantizeLinear": _grid,
}  # fmt: skip
