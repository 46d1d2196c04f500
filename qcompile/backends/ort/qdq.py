"""Pairs of QuantizeLinear and DequantizeLinear: activations in static ranges, and the product of a site between pairs.

onnxruntime and other runtimes read such a pair as the type of a value, and compute what stands between pairs in
integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.analysis.forms import Convolution, Linear
from qcompile.backends.ort.emitter import Emitter, Parts
from qcompile.backends.ort.frame import cast, graph_type
from qcompile.formats import Format, Kind, Quantized, ScaleType
from qcompile.formats.static import Range
from qcompile.ir.required import constant
from qcompile.targets.plans import Plan
from qcompile.targets.scheme import Scheme

__all__ = ["emit", "pack", "quantized", "reads", "takes"]

_FLOAT = ir.DataType.FLOAT
_BIAS = 2**31 - 1

#: By the name of an element, the type of ONNX that holds its codes.
_TYPES = {"int8-full": ir.DataType.INT8, "uint8": ir.DataType.UINT8}


def quantized(emit: Emitter, node: ir.Node, x: ir.Value, within: Range) -> ir.Value:
    """A float value as it reads back from a static range; sites that read it share the pair."""
    return emit.shared(("range", x, within), partial(_pair, emit, node, x, within))


def _pair(emit: Emitter, node: ir.Node, x: ir.Value, within: Range) -> ir.Value:
    dtype = _TYPES[within.format.element.name]
    scale = emit.constant(f"{x.name}.scale", np.array(within.scale, np.float32))
    zero = emit.constant(f"{x.name}.zero_point", np.array(within.zero_point, dtype.numpy()))
    codes = emit.op(node, "QuantizeLinear", x, scale, zero, hint=f"{x.name}/codes")
    return emit.op(node, "DequantizeLinear", codes, scale, zero, hint=f"{x.name}/{within.format.name}")


def reads(fmt: Format) -> bool:
    """Whether a pair can hold an activation in a format: a static one of eight-bit integers."""
    return fmt.static and fmt.element.name in _TYPES


def takes(scheme: Scheme) -> bool:
    """Signed eight-bit weights with one scale per output channel, and inputs in a static range."""
    weight, activation = scheme.weight, scheme.activation
    if not isinstance(weight, Format) or activation is None or not reads(activation):
        return False
    plain = weight.element.kind is Kind.INTEGER and weight.bits == 8 and weight.element.levels[0] < 0
    return plain and weight.group is None and weight.scale is ScaleType.FP32


def pack(weight: Quantized) -> dict[str, np.ndarray]:
    """Signed bytes ``[out, in]`` and scales ``[out]``."""
    stored = weight.codes[:, : weight.shape[1]].contiguous().numpy().view(np.int8)
    return {"weight": stored, "scale": weight.scales.flatten().numpy()}


def emit(emit: Emitter, site: Linear | Convolution, plan: Plan, parts: Parts) -> tuple[ir.Value, Mapping[str, Any]]:
    """The operator itself, which reads its input, its weight and its bias through DequantizeLinear."""
    import torch

    node, within = site.node, plan.calibrated
    wide = graph_type(site.weight) != _FLOAT
    x = emit.shared(("cast", site.x, _FLOAT), partial(cast, emit, node, site.x, _FLOAT)) if wide else site.x
    read = quantized(emit, node, x, within)
    codes, scales = np.asarray(parts["weight"]), np.asarray(parts["scale"])
    weight = site.layout.weight(torch.from_numpy(codes)).contiguous().numpy()
    decoded = _weight(emit, site, weight, scales)
    bias = None if site.bias is None else _bias(emit, site, site.bias, within.scale * scales)
    if wide and bias is not None and bias is site.bias:
        bias = cast(emit, node, bias, _FLOAT)
    new = {site.x: read, site.weight: decoded, site.bias: bias}
    operands = [new.get(value, value) for value in node.inputs]
    y = emit.op(node, node.op_type, *operands, **{name: own.value for name, own in node.attributes.items()})
    return (cast(emit, node, y, graph_type(site.weight)) if wide else y), {}


def _weight(emit: Emitter, site: Linear | Convolution, codes: np.ndarray, scales: np.ndarray) -> ir.Value:
    """The decoded weight. Where its channels lie along two axes, one scale stands for all, and a product follows."""
    layout = site.layout
    if layout.parts == layout.shape:
        return _decoded(emit, site, {"weight": codes, "scale": scales}, _channels(codes.shape, site), site.weight)
    one = {"weight": codes, "scale": np.ones(codes.shape[0], np.float32)}
    rows, columns = layout.ordered[: layout.rows], layout.ordered[layout.rows :]
    every = np.broadcast_to(scales.reshape(*rows, *[1] * len(columns)), layout.ordered)
    spread = np.ascontiguousarray(every.transpose(layout.back).reshape(layout.shape))
    return emit.op(site.node, "Mul", _decoded(emit, site, one, 0, site.weight), emit.apart("scales", spread))


def _decoded(emit: Emitter, site: Linear | Convolution, parts: Parts, axis: int, of: ir.Value) -> ir.Value:
    """Codes of a constant, read back.

    Zero points of a weight are not shared: where onnxruntime is asked for exact sums on x86 without VNNI, it makes
    unsigned codes of each weight, and replaces its zero points. Those of a bias are zero unsaid.
    """
    operands = emit.weights(site.weight, parts)
    stored, steps = map(np.asarray, parts.values())
    if stored.dtype == np.int8:
        operands.append(emit.apart(f"{of.name}.zero_point", np.zeros(steps.shape, np.int8)))
    return emit.op(site.node, "DequantizeLinear", *operands, axis=axis, hint=f"{of.name}/decoded")


def _channels(shape: tuple[int, ...], site: Linear | Convolution) -> int:
    """The axis of the output channels: of those of the rows of the matrix the one that has a size, or the first."""
    rows = site.layout.order[: site.layout.rows]
    return next((axis for axis in rows if shape[axis] != 1), rows[0])


def _bias(emit: Emitter, site: Linear | Convolution, bias: ir.Value, scale: np.ndarray) -> ir.Value:
    """A bias in 32 bits, one step of which is a step of the products; as it is where it is no constant vector.

    Its error is at most half such a step, of which a sum of products has thousands.
    """
    values = None if bias.const_value is None else constant(bias).numpy().astype(np.float32)
    scaled = isinstance(site, Linear) and (site.alpha != 1 or site.beta != 1)
    if values is None or values.shape != scale.shape or scaled:
        return bias
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    codes = np.round(values.astype(np.float64) / scale)
    if np.abs(codes).max(initial=0) > _BIAS:
        return bias
    return _decoded(emit, site, {"bias": codes.astype(np.int32), "bias_scale": scale}, 0, bias)
