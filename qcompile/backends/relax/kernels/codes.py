"""Codes to levels, and bytes to scales, by bits or tables: TVM's own FP8 and FP4 types decode wrongly."""

from __future__ import annotations

import torch
from tvm import tirx

from qcompile.backends.relax.kernels.lanes import Lanes, select
from qcompile.formats import Element, Kind, ScaleType
from qcompile.formats.rounding import decode_element

__all__ = ["SCALE_DTYPES", "container", "decode_float", "decode_scale", "level"]

#: How a stored scale is handed to a kernel.
SCALE_DTYPES = {
    ScaleType.NONE: "float32", ScaleType.FP32: "float32", ScaleType.FP16: "uint16", ScaleType.BF16: "uint16",
    ScaleType.E8M0: "uint8", ScaleType.E4M3: "uint8", ScaleType.UE5M3: "uint8",
}  # fmt: skip


def container(element: Element) -> int:
    """Bits that a code takes in a packed weight: 2, 4 or 8, so that none crosses a word."""
    return next(bits for bits in (2, 4, 8) if bits >= element.bits)


def level(lanes: Lanes, word: tirx.Expr, position: int, element: Element) -> tirx.Expr:
    """The float32 levels of the codes at one position of int32 words.

    Args:
        position: counted from the low end of the word.
    """
    bits = container(element)
    if bits <= 4 and (element.kind is Kind.TABLE or lanes.permutes):
        return lanes.table(_levels(element), _shifted(lanes, word, position * bits))
    if element.kind is Kind.INTEGER and element.levels[0] < 0 and element.bits == bits:
        top = word << lanes.number(32 - (position + 1) * bits, "int32")
        return _scaled(lanes, top >> lanes.number(32 - bits, "int32"), element)
    code = _shifted(lanes, word, position * bits) & lanes.number(2**element.bits - 1, "int32")
    if element.kind is Kind.FLOAT:
        return decode_float(lanes, code, element.exponent_bits, element.mantissa_bits, element.bias)
    if element.levels[0] < 0:
        spare = lanes.number(32 - element.bits, "int32")
        code = (code << spare) >> spare
    return _scaled(lanes, code, element)


def _shifted(lanes: Lanes, word: tirx.Expr, bits: int) -> tirx.Expr:
    return word >> lanes.number(bits, "int32") if bits else word


def _levels(element: Element) -> list[float]:
    """Of every four-bit pattern; a narrower element repeats."""
    codes = torch.arange(16, dtype=torch.uint8) & (2**element.bits - 1)
    return decode_element(codes, element).tolist()


def _scaled(lanes: Lanes, code: tirx.Expr, element: Element) -> tirx.Expr:
    value = lanes.cast(code, "float32")
    return value if element.step == 1 else value * lanes.number(element.step)


def decode_float(lanes: Lanes, code: tirx.Expr, exponent: int, mantissa: int, bias: int) -> tirx.Expr:
    """A small float of sign, exponent and mantissa without NaN. No step passes through float32's subnormals."""
    magnitude = code & lanes.number(2 ** (exponent + mantissa) - 1, "int32")
    normal = lanes.floats(
        (magnitude << lanes.number(23 - mantissa, "int32")) + lanes.number((127 - bias) << 23, "int32")
    )
    tiny = lanes.cast(magnitude, "float32") * lanes.number(2.0 ** (1 - bias - mantissa))
    value = select(magnitude < lanes.number(2**mantissa, "int32"), tiny, normal)
    sign = (code >> lanes.number(exponent + mantissa, "int32")) << lanes.number(31, "int32")
    return lanes.floats(lanes.bits(value) | sign)


def decode_scale(lanes: Lanes, raw: tirx.Expr, storage: ScaleType) -> tirx.Expr:
    """The float32 values of stored scales."""
    if storage in (ScaleType.NONE, ScaleType.FP32):
        return raw
    if storage is ScaleType.FP16:
        half = "float16" if lanes.width == 1 else f"float16x{lanes.width}"
        return lanes.cast(tirx.reinterpret(half, raw), "float32")
    code = lanes.cast(raw, "int32")
    if storage is ScaleType.BF16:
        return lanes.floats(code << lanes.number(16, "int32"))
    if storage is ScaleType.E8M0:
        value = lanes.floats(code << lanes.number(23, "int32"))
        return select(code == lanes.number(0, "int32"), lanes.number(2.0**-127), value)
    if storage is ScaleType.E4M3:
        return decode_float(lanes, code, 4, 3, 7)
    magnitude = code & lanes.number(255, "int32")  # UE5M3 has no sign
    normal = lanes.floats((magnitude << lanes.number(20, "int32")) + lanes.number((127 - 15) << 23, "int32"))
    tiny = lanes.cast(magnitude, "float32") * lanes.number(2.0**-17)
    return select(magnitude < lanes.number(8, "int32"), tiny, normal)
