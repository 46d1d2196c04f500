"""Functions that quantize an activation as it runs and read it back: ``QuantizeNVFP4(x) -> x̂``."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qcompile.backends.ort.body import Body
from qcompile.backends.ort.rounding import round_element
from qcompile.backends.ort.scales import divisor, effective_scales, scales_in_range
from qcompile.formats import Format

__all__ = ["label", "pad_function", "quantize_function", "static_function"]


def label(fmt: Format) -> str:
    """A format in the name of a function: ``NVFP4_4OVER6``."""
    return fmt.name.upper().replace("-", "_")


def quantize_function(fmt: Format, opset: int) -> ir.Function:
    """``x -> x̂``: float32, groups along the last axis, which they divide.

    Its attributes are the shapes to compute in, ``groups = [0, ..., groups, group]``, and to return, ``shape =
    [0, ..., K]``, where 0 keeps an axis: with a product of axes instead, their sizes would have no name, and
    onnxruntime's memory planner takes quadratic time over buffers of unnamed sizes.

    Each row is quantized on its own and reads back as ``qcompile.formats.fake_quantize`` of that row. A NaN stays
    where it is instead of spreading over its group.
    """
    body = Body(opset)
    groups = body.Reshape(body.input("x"), body.ints("groups"))
    out = _quantize(body, groups, fmt, effective_scales(body, groups, fmt))
    return body.function(f"Quantize{label(fmt)}", body.Reshape(out, body.ints("shape")))


def static_function(fmt: Format, opset: int) -> ir.Function:
    """``x, scale, zero_point -> x̂``: float32 in a static range, as ``qcompile.formats.static.Range.round``.

    Of a format of groups it is ``x, scale -> x̂``, with the attributes of ``quantize_function``.
    """
    body = Body(opset)
    if fmt.group is not None:
        groups, scale = body.Reshape(body.input("x"), body.ints("groups")), body.input("scale")
        out = _quantize(body, groups, fmt, scales_in_range(body, groups, fmt, scale))
        return body.function(f"Quantize{label(fmt)}", body.Reshape(out, body.ints("shape")))
    x, scale, zero = map(body.input, ("x", "scale", "zero_point"))
    rounded = round_element(body, body.Div(x, scale), fmt.element, zero if fmt.zero_point else None)
    return body.function(f"Quantize{label(fmt)}", body.Mul(rounded, scale))


def _quantize(body: Body, x: ir.Value, fmt: Format, scales: Sequence[tuple[ir.Value, ir.Value | None]]) -> ir.Value:
    candidates = [_candidate(body, x, scale, zero, fmt) for scale, zero in scales]
    if len(candidates) == 1:
        _, rounded, scale = candidates[0]
        return body.Mul(rounded, body.column(scale))
    return _better(body, *candidates)


_Candidate = tuple[ir.Value, ir.Value, ir.Value]


def _candidate(body: Body, x: ir.Value, scale: ir.Value, zero: ir.Value | None, fmt: Format) -> _Candidate:
    """(values over scale, the nearest levels, scale)."""
    y = body.Div(x, body.column(divisor(body, scale, fmt)))
    return y, round_element(body, y, fmt.element, None if zero is None else body.column(zero)), scale


def _better(body: Body, first: _Candidate, second: _Candidate) -> ir.Value:
    """Per group the candidate with less squared error, the first on a tie; the second where the first scale is 0.

    Errors are taken over the scale of the first, which saves two products with a broadcast and leaves them in range,
    and a masked sum stands for Where, which is five times slower. An error that is NaN (scale 0) loses.
    """
    ratio = body.Div(second[2], first[2])
    keep = body.LessOrEqual(_squares(body, first), body.Mul(body.Mul(_squares(body, second), ratio), ratio))
    mask = body.to(keep, ir.DataType.FLOAT)
    scales = body.Mul(first[2], mask), body.Mul(second[2], body.Sub(body.constant(1.0), mask))
    parts = [
        body.Mul(rounded, body.column(scale)) for (_, rounded, _), scale in zip((first, second), scales, strict=True)
    ]
    return body.Add(*parts)


def _squares(body: Body, candidate: _Candidate) -> ir.Value:
    y, rounded, _ = candidate
    return body.reduce("ReduceSumSquare", body.Sub(rounded, y))


def pad_function(opset: int) -> ir.Function:
    """``PadLast(x)``: zeros behind the last axis, as many as the attribute ``count`` says, at any rank."""
    body = Body(opset)
    x = body.input("x")
    twice = body.Mul(body.Shape(body.Shape(x)), body.vector(2))
    zeros = body.ConstantOfShape(body.Sub(twice, body.vector(1)), value=ir.tensor([0], dtype=ir.DataType.INT64))
    pads = body.Concat(zeros, body.ints("count"), axis=0)
    return body.function("PadLast", body.Pad(x, pads))
