"""Pairs of QuantizeLinear and DequantizeLinear: activations in static ranges, and the product of a site between pairs.

onnxruntime and other runtimes read such a pair as the type of a value, and compute what stands between pairs in
integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from qcompile.analysis.forms import Convolution, Linear
from qcompile.backends.ort.emitter import Emitter, Parts
from qcompile.backends.ort.frame import again, cast, graph_type
from qcompile.errors import InputError
from qcompile.formats import Format, Kind, Quantized, ScaleType
from qcompile.formats.rounding import decode_element
from qcompile.formats.static import Range
from qcompile.ir.required import constant, rank_of
from qcompile.targets.plans import Plan
from qcompile.targets.scheme import Scheme

__all__ = ["TENSORRT", "emit", "pack", "quantized", "reads", "takes"]

#: The form for TensorRT, among a target's forms.
TENSORRT = "tensorrt"

_FLOAT = ir.DataType.FLOAT
_BIAS = 2**31 - 1

#: The version of the operators from which on pairs take 4-bit codes, and blocks.
_FOUR_BITS = 21

#: By the name of an element, the type of ONNX that holds its codes.
_TYPES = {"int8-full": ir.DataType.INT8, "uint8": ir.DataType.UINT8, "e4m3": ir.DataType.FLOAT8E4M3FN}


def quantized(emit: Emitter, node: ir.Node, x: ir.Value, within: Range) -> ir.Value:
    """A float value as it reads back from a static range; sites that read it share the pair."""
    return emit.shared(("range", x, within), partial(_pair, emit, node, x, within))


def _pair(emit: Emitter, node: ir.Node, x: ir.Value, within: Range) -> ir.Value:
    dtype = _TYPES[within.format.element.name]
    scale = _scale(emit, x, within)
    zero = emit.constant(f"{x.name}.zero_point", np.array(within.zero_point, dtype.numpy()))
    codes = emit.op(node, "QuantizeLinear", x, scale, zero, hint=f"{x.name}/codes")
    return emit.op(node, "DequantizeLinear", codes, scale, zero, hint=f"{x.name}/{within.format.name}")


def _scale(emit: Emitter, x: ir.Value, within: Range) -> ir.Value:
    return emit.constant(f"{x.name}.scale", np.array(within.scale, np.float32))


def reads(fmt: Format) -> bool:
    """Whether a pair can hold an activation in a format: a static one of eight bits."""
    return fmt.static and fmt.element.name in _TYPES


def takes(scheme: Scheme) -> bool:
    """Signed weights of eight bits per output channel, or of four bits in groups too, and inputs that a pair holds.

    FP8 beside FP8 alone.
    """
    weight, activation = scheme.weight, scheme.activation
    if not isinstance(weight, Format) or not (activation is None or reads(activation)) or weight.zero_point:
        return False
    if Kind.FLOAT in (weight.element.kind, activation and activation.element.kind):
        return activation is not None and weight.element is activation.element and weight.group is None
    signed = weight.element.kind is Kind.INTEGER and weight.bits in (4, 8) and weight.element.levels[0] < 0
    return signed and (weight.bits == 4 or weight.group is None) and weight.scale is not ScaleType.NONE


def pack(weight: Quantized) -> dict[str, np.ndarray]:
    """Signed codes ``[out, in]``, one a byte, and scales ``[out]``, or ``[out, groups]``."""
    levels = decode_element(weight.codes[:, : weight.shape[1]], weight.format.element).numpy()
    scales = weight.scales.float().flatten(0 if weight.format.group is None else 1)
    floats = weight.format.element.kind is Kind.FLOAT
    return {"weight": levels.astype(ml_dtypes.float8_e4m3fn if floats else np.int8), "scale": scales.numpy()}


def emit(emit: Emitter, site: Linear | Convolution, plan: Plan, parts: Parts) -> tuple[ir.Value, Mapping[str, Any]]:
    """The operator itself, which reads its input, its weight and its bias through DequantizeLinear."""
    node, fmt = site.node, plan.weight.format
    if fmt.bits == 4 and emit.opset < _FOUR_BITS:
        raise InputError(f"4-bit weights need operators of version {_FOUR_BITS} in pairs; the graph has {emit.opset}")
    wide = graph_type(site.weight) != _FLOAT
    x = emit.shared(("cast", site.x, _FLOAT), partial(cast, emit, node, site.x, _FLOAT)) if wide else site.x
    codes, scales = np.asarray(parts["weight"]), np.asarray(parts["scale"])
    read, bias = x, site.bias
    if plan.scheme.activation is not None:
        read = quantized(emit, node, x, plan.calibrated)
        if emit.target.form != TENSORRT:  # which reads biases as floats
            bias = _rounded_bias(emit, site, plan.calibrated, scales)
    decoded = _weight(emit, site, fmt, codes, scales)
    if wide and bias is not None and bias is site.bias:
        bias = cast(emit, node, bias, _FLOAT)
    new = {site.x: read, site.weight: decoded, site.bias: bias}
    operands = [new.get(value, value) for value in node.inputs]
    y = emit.op(node, node.op_type, *operands, **{name: own.value for name, own in node.attributes.items()})
    return (cast(emit, node, y, graph_type(site.weight)) if wide else y), {}


def _rounded_bias(emit: Emitter, site: Linear | Convolution, within: Range, scales: np.ndarray) -> ir.Value | None:
    """The bias of a site in steps of its products; one that an Add behind it adds is read so in its place."""
    if site.bias is not None:
        return _bias(emit, site, site.bias, within, scales)
    _round_added(emit, site, within, scales)
    return None


def _weight(
    emit: Emitter, site: Linear | Convolution, fmt: Format, codes: np.ndarray, scales: np.ndarray
) -> ir.Value:  # fmt: skip
    """The decoded weight: as it lies where a scale is of a channel, or of channels in a row; else as its matrix."""
    layout = site.layout
    apart = layout.parts == layout.shape
    if fmt.group is None and apart:
        stored = _laid(codes, layout.ordered, layout.back)
        parts: Parts = {"weight": _stored(stored, fmt), "scale": scales}
        return _decoded(emit, site, parts, _channels(stored.shape, site), site.weight)
    columns = layout.ordered[layout.rows :]
    if fmt.group is not None and apart and (len(columns) == 1 or columns[-1] % fmt.group == 0):
        stored, steps = (_laid(own, (*layout.ordered[:-1], -1), layout.back) for own in (codes, scales))
        parts = {"weight": _stored(stored, fmt), "scale": steps}
        return _decoded(emit, site, parts, layout.order[-1], site.weight, block_size=fmt.group)
    blocks = {} if fmt.group is None else {"block_size": fmt.group}
    parts = {"weight": _stored(codes, fmt), "scale": scales}
    matrix = _decoded(emit, site, parts, 1 if blocks else 0, site.weight, **blocks)
    cut = emit.op(site.node, "Reshape", matrix, _sizes(emit, layout.ordered))
    turned = emit.op(site.node, "Transpose", cut, perm=layout.back)
    return emit.op(site.node, "Reshape", turned, _sizes(emit, layout.shape))


def _sizes(emit: Emitter, sizes: Sequence[int]) -> ir.Value:
    return emit.constant("qcompile.sizes", np.array(sizes, np.int64))


def _laid(matrix: np.ndarray, ordered: Sequence[int], back: Sequence[int]) -> np.ndarray:
    """A matrix as the weight lies, or scales of its groups."""
    return np.ascontiguousarray(matrix.reshape(ordered).transpose(back))


def _stored(codes: np.ndarray, fmt: Format) -> ir.TensorProtocol:
    """Codes in the type of the format, two of four bits in a byte."""
    return ir.Tensor(codes) if fmt.bits == 8 else ir.Tensor(codes.astype(ml_dtypes.int4))


def _decoded(
    emit: Emitter, site: Linear | Convolution, parts: Parts, axis: int, of: ir.Value, **blocks: Any
) -> ir.Value:  # fmt: skip
    """Codes of a constant, read back.

    Zero points of a weight are not shared: where onnxruntime is asked for exact sums on x86 without VNNI, it makes
    unsigned codes of each weight, and replaces its zero points. Those of biases and of 4-bit codes are zero unsaid.
    """
    operands = emit.weights(site.weight, parts)
    steps = np.asarray([*parts.values()][1])
    if operands[0].dtype == ir.DataType.INT8:
        if operands[0].uses() and emit.target.form != TENSORRT and not emit.target.options.get("integers"):
            operands[0] = again(emit, site.node, operands[0])
        operands.append(emit.apart(f"{of.name}.zero_point", np.zeros(steps.shape, np.int8)))
    return emit.op(site.node, "DequantizeLinear", *operands, axis=axis, hint=f"{of.name}/decoded", **blocks)


def _channels(shape: tuple[int, ...], site: Linear | Convolution) -> int:
    """The axis of the output channels: of those of the rows of the matrix the one that has a size, or the first."""
    rows = site.layout.order[: site.layout.rows]
    return next((axis for axis in rows if shape[axis] != 1), rows[0])


def _round_added(emit: Emitter, site: Linear | Convolution, within: Range, scales: np.ndarray) -> None:
    """Read the constant that an Add behind a product of matrices adds through a pair as well.

    onnxruntime makes Gemm of both, and computes it in floats, weights decoded at each run, if its bias is a float.
    """
    value, uses = site.node.outputs[0], site.node.outputs[0].uses()
    if site.node.op_type != "MatMul" or len(uses) != 1 or value.is_graph_output() or rank_of(site.x) != 2:
        return
    ((node, index),) = uses
    bias = node.inputs[1 - index] if node.op_type == "Add" and not node.domain else None
    if bias is not None and (decoded := _bias(emit, site, bias, within, scales)) is not bias:
        node.replace_input_with(1 - index, decoded)
        emit.drop(bias)


def _bias(
    emit: Emitter, site: Linear | Convolution, bias: ir.Value, within: Range, scales: np.ndarray
) -> ir.Value:  # fmt: skip
    """A bias in 32 bits, one step of which is a step of the products; as it is where it is no constant vector.

    Its error is at most half such a step, of which a sum of products has thousands.
    """
    values = None if bias.const_value is None else constant(bias).numpy().astype(np.float32)
    scaled = isinstance(site, Linear) and (site.alpha != 1 or site.beta != 1)
    if values is None or values.shape != scales.shape or scaled:
        return bias
    steps = np.float32(within.scale) * scales
    follows = bool((steps > 0).all()) and not emit.target.options.get("integers")
    steps = np.where(steps > 0, steps, 1.0).astype(np.float32)
    codes = np.round(values.astype(np.float64) / steps)
    if np.abs(codes).max(initial=0) > _BIAS:
        return bias
    parts = {"bias": codes.astype(np.int32)}
    if not follows:
        return _decoded(emit, site, parts | {"bias_scale": steps}, 0, bias)
    (stored,) = emit.weights(site.weight, parts)
    factors = _scale(emit, site.x, within), emit.constant(f"{site.weight.name}.scale", scales)
    step = emit.op(site.node, "Mul", *factors, hint=f"{bias.name}/step")  # computed as a model is loaded
    return emit.op(site.node, "DequantizeLinear", stored, step, axis=0, hint=f"{bias.name}/decoded")
