"""Packed weights and the functions that read them: ``DecodeNVFP4(codes, scales, tensor_scale) -> w``.

Bytes become values by a lookup: a table of 256 rows holds the levels of all codes in a byte. That is exact for every
codebook at any version of the operators, FP8 scales included, and onnxruntime folds it into a float weight when it
loads the model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import torch

from qcompile.backends.ort.activations import label
from qcompile.backends.ort.body import Body
from qcompile.errors import InputError
from qcompile.formats import Format, Quantized, ScaleRule, ScaleType
from qcompile.formats.packing import pack_codes, unpack_codes
from qcompile.formats.rounding import decode_element
from qcompile.formats.scales import scale_code, scale_from_code

__all__ = ["decode_function", "linear_function", "lookup_function", "packed_parts", "packed_width"]

_FLOATS = {ScaleType.FP16: ir.DataType.FLOAT16, ScaleType.BF16: ir.DataType.BFLOAT16, ScaleType.FP32: None}


def packed_width(q: Quantized) -> int:
    """Columns of a packed weight ``[N, K]``: whole groups, and whole runs of eight codes, which end on a byte."""
    return -(-q.codes.shape[1] // 8) * 8


def packed_parts(q: Quantized) -> dict[str, ir.TensorProtocol]:
    """The inputs of the functions below by name, in order.

    Codes ``[N, width · bits / 8]``, scales and zero points ``[N, groups]``, tensor scale.
    """
    codes = torch.nn.functional.pad(q.codes, (0, packed_width(q) - q.codes.shape[1]))
    parts = {"codes": ir.tensor(pack_codes(codes, q.format.bits).numpy()), "scales": _scales(q)}
    if q.zero_points is not None:
        parts["zero_points"] = ir.tensor(q.zero_points.numpy())
    if q.tensor_scale is not None:
        parts["tensor_scale"] = ir.tensor(q.tensor_scale.reshape(()).numpy())
    if list(parts) != part_names(q.format):
        raise InputError(f"a weight in {q.format.name} has {', '.join(parts)}, not {', '.join(part_names(q.format))}")
    return parts


def _scales(q: Quantized) -> ir.TensorProtocol:
    stored = scale_code(q.scales, q.format.scale)
    if stored.dtype is torch.bfloat16:
        return ir.Tensor(stored.view(torch.uint16).numpy(), dtype=ir.DataType.BFLOAT16)
    return ir.tensor(stored.numpy())


def part_names(fmt: Format) -> list[str]:
    """The names of :func:`packed_parts`."""
    second = fmt.tensor_scale is not None or fmt.rule is ScaleRule.FOUR_THIRDS
    return ["codes", "scales"] + ["zero_points"] * fmt.zero_point + ["tensor_scale"] * second


# ---- functions ---------------------------------------------------------------------------------------------------


def decode_function(fmt: Format, opset: int) -> ir.Function:
    """Packed rows to float32 ``[N, width]``, equal to ``Quantized.dequantize`` to the bit."""
    body = Body(opset)
    parts = {name: body.input(name) for name in part_names(fmt)}
    group = [0, -1, fmt.group] if fmt.group else [0, 1, -1]
    levels = body.Reshape(_levels(body, parts["codes"], fmt), body.vector(*group))
    if "zero_points" in parts:
        levels = body.Sub(levels, body.column(body.to(parts["zero_points"], ir.DataType.FLOAT)))
    scale = _read_scale(body, parts["scales"], fmt)
    if "tensor_scale" in parts:
        scale = body.Mul(scale, parts["tensor_scale"])
    out = body.Mul(levels, body.column(scale))
    return body.function(f"Decode{label(fmt)}", body.Reshape(out, body.vector(0, -1)))


def linear_function(fmt: Format, opset: int) -> ir.Function:
    """``x [..., width]`` times a packed weight ``[N, width]``, transposed: ``[..., N]``."""
    body = Body(opset)
    x = body.input("x")
    weight = body.call(f"Decode{label(fmt)}", [body.input(name) for name in part_names(fmt)])
    return body.function(f"Linear{label(fmt)}", body.MatMul(x, body.Transpose(weight, perm=[1, 0])))


def lookup_function(fmt: Format, opset: int) -> ir.Function:
    """Rows of a packed table by ``indices`` of any shape: only the rows that are asked for are decoded, and one more.

    Without that one, where no row is asked for, a -1 in a shape would stand for any number.
    """
    body = Body(opset)
    indices = body.input("indices")
    flat = body.Pad(body.Reshape(indices, body.vector(-1)), body.vector(0, 1))
    parts = {name: body.input(name) for name in part_names(fmt)}
    rows = [value if name == "tensor_scale" else body.Gather(value, flat, axis=0) for name, value in parts.items()]
    decoded = body.call(f"Decode{label(fmt)}", rows)
    width = body.Slice(body.Shape(decoded), body.vector(1), body.vector(2))
    asked = body.Slice(decoded, body.vector(0), body.vector(-1), body.vector(0))
    out = body.reshape(asked, body.Concat(body.Shape(indices), width, axis=0))
    return body.function(f"Lookup{label(fmt)}", out)


def _read_scale(body: Body, scales: ir.Value, fmt: Format) -> ir.Value:
    if fmt.scale in _FLOATS:
        return scales if _FLOATS[fmt.scale] is None else body.to(scales, ir.DataType.FLOAT)
    table = scale_from_code(torch.arange(256, dtype=torch.uint8), fmt.scale).numpy()
    return body.Gather(body.constant(table), body.to(scales, ir.DataType.INT32))


def _levels(body: Body, codes: ir.Value, fmt: Format) -> ir.Value:
    """Bytes ``[N, bytes]`` to levels, of which ``fmt.group`` or ``K`` make a group."""
    unpack: Callable[[Body, ir.Value, Format], ir.Value] = _by_byte if 8 % fmt.bits == 0 else _by_word
    return unpack(body, codes, fmt)


def _by_byte(body: Body, codes: ir.Value, fmt: Format) -> ir.Value:
    every = unpack_codes(torch.arange(256, dtype=torch.uint8)[:, None], fmt.bits, 8 // fmt.bits)
    table = decode_element(every, fmt.element).numpy()
    return body.Gather(body.constant(table), body.to(codes, ir.DataType.INT32))


def _by_word(body: Body, codes: ir.Value, fmt: Format) -> ir.Value:
    """Eight codes of ``bits`` bits fill as many bytes: make one integer of them, and shift each code out."""
    bits = fmt.bits
    bytes_ = body.to(body.Reshape(codes, body.vector(0, -1, bits)), ir.DataType.UINT64)
    placed = body.BitShift(bytes_, body.constant(np.arange(bits) * 8, np.uint64), direction="LEFT")
    halves = body.to(placed, ir.DataType.INT64)  # sums of int64, which are those of uint64 below 2^56
    word = body.to(body.reduce("ReduceSum", halves), ir.DataType.UINT64)
    shifted = body.BitShift(body.column(word), body.constant(np.arange(8) * bits, np.uint64), direction="RIGHT")
    code = body.Mod(body.to(shifted, ir.DataType.INT64), body.constant(1 << bits, np.int64))
    table = decode_element(torch.arange(1 << bits, dtype=torch.uint8), fmt.element).numpy()
    return body.Gather(body.constant(table), body.Reshape(code, body.vector(0, -1)))
