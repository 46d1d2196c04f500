"""Eight-bit weights per channel and activations per token, multiplied as integers.

The activation is symmetric, one scale a row: exactly the format that calibration and assignment reason about, and no
token depends on the others of its batch. (DynamicQuantizeLinear has one scale for the whole tensor.) Codes go to
the product shifted by 128 into unsigned bytes, for which x86 has instructions.

Operators are few, because at one row of a small model each costs as much as a product: QuantizeLinear rounds, shifts
and narrows quotients at once, MatMulIntegerToFloat applies the scales of the channels to sums that it still holds. A
bias is left to the operators behind, with which onnxruntime fuses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.analysis.forms import Linear, Lookup
from qcompile.backends.ort.emitter import Emitter, Parts
from qcompile.backends.ort.frame import again, cast, graph_type, prepare, whole_codes, wrap
from qcompile.formats import Format, Kind, Quantized, ScaleType
from qcompile.formats.catalogue import AnyFormat
from qcompile.targets.plans import Plan
from qcompile.targets.scheme import Scheme

__all__ = ["emit", "emit_lookup", "pack", "pack_table", "takes", "takes_lookup"]

_DOMAIN = "com.microsoft"
_LARGEST, _ZERO = 127, 128
_TABLE = ("codes", "scales")  # what a table is stored as
_AXES_ARE_INPUTS = 18  # of ReduceMax


def takes(scheme: Scheme) -> bool:
    """Signed eight-bit integers with one float scale per output channel, and per row of the input or for all of it."""
    activation = scheme.activation
    return activation is not None and _fits(scheme.weight) and (activation.whole or _fits(activation))


def takes_lookup(scheme: Scheme) -> bool:
    """Signed eight-bit integers with one float scale per row of a table."""
    return _fits(scheme.weight)


def _fits(fmt: AnyFormat | None) -> bool:
    if not isinstance(fmt, Format):
        return False
    signed = fmt.element.kind is Kind.INTEGER and fmt.bits == 8 and fmt.element.levels[0] == -_LARGEST
    return signed and fmt.group is None and fmt.scale is ScaleType.FP32 and not fmt.zero_point


def pack(weight: Quantized) -> dict[str, np.ndarray]:
    """The weight ``[K, N]`` as signed bytes, and its scales ``[N]``."""
    stored = weight.codes[:, : weight.shape[1]].numpy().view(np.int8)
    return {"weight": np.ascontiguousarray(stored.T), "scales": weight.scales.flatten().numpy()}


def pack_table(weight: Quantized) -> dict[str, np.ndarray]:
    """The table ``[N, K]`` as signed bytes, and its scales ``[N, 1]``."""
    parts = weight.codes[:, : weight.shape[1]].contiguous().numpy().view(np.int8), weight.scales.view(-1, 1).numpy()
    return dict(zip(_TABLE, parts, strict=True))


def emit_lookup(emit: Emitter, site: Lookup, plan: Plan, parts: Parts) -> tuple[ir.Value, Mapping[str, Any]]:
    """Rows of codes, times their scales."""
    node, dtype = site.node, graph_type(site.weight)
    table = emit.weights(site.weight, parts)
    for part, value in zip(_TABLE, table, strict=True):
        emit.shared((part, id(plan.weight)), partial(_given, value))
    codes, scales = (emit.op(node, "Gather", value, site.indices, axis=0) for value in table)
    y = emit.op(node, "Mul", cast(emit, node, codes, ir.DataType.FLOAT), scales)
    return (y if dtype == ir.DataType.FLOAT else cast(emit, node, y, dtype)), {}


def _given(value: ir.Value) -> ir.Value:
    return value


def emit(emit: Emitter, site: Linear, plan: Plan, parts: Parts) -> tuple[ir.Value, Mapping[str, Any]]:
    """The product of codes as float, times the scale of each row; sites that read one value share its codes."""
    node, x = site.node, prepare(emit, site, [ir.DataType.FLOAT])
    activation = plan.scheme.activation
    if activation is not None and activation.whole:
        return wrap(emit, site, _whole(emit, site, x, plan, parts), ir.DataType.FLOAT), {}
    scale = emit.shared(("scale", x), partial(_scale, emit, site, x))
    codes = emit.shared(("codes", x), partial(_codes, emit, node, x, scale))
    weight, scales = _operands(emit, site, plan, parts)
    emit.model.graph.opset_imports.setdefault(_DOMAIN, 1)
    zero = emit.constant("qcompile.zero_point", np.array(_ZERO, np.uint8))
    y = emit.op(node, "MatMulIntegerToFloat", codes, weight, _number(emit, 1), scales, zero, domain=_DOMAIN)
    return wrap(emit, site, emit.op(node, "Mul", y, scale), ir.DataType.FLOAT), {}


def _whole(emit: Emitter, site: Linear, x: ir.Value, plan: Plan, parts: Parts) -> ir.Value:
    """The product where all rows have one scale, which the operator applies as well."""
    codes, scale, zero = whole_codes(emit, site.node, x)
    weight, scales = _operands(emit, site, plan, parts)
    emit.model.graph.opset_imports.setdefault(_DOMAIN, 1)
    return emit.op(site.node, "MatMulIntegerToFloat", codes, weight, scale, scales, zero, domain=_DOMAIN)


def _operands(emit: Emitter, site: Linear, plan: Plan, parts: Parts) -> Sequence[ir.Value]:
    """Weight and scales. Those of a table are turned when the model is loaded, so that a tied head takes no bytes."""
    codes, scales = (emit.made((part, id(plan.weight))) for part in _TABLE)
    if codes is None or scales is None:
        weight, scales = emit.weights(site.weight, parts)
        return again(emit, site.node, weight) if weight.uses() else weight, scales
    flat = emit.constant("qcompile.flat", np.array([-1], np.int64))
    return emit.op(site.node, "Transpose", codes, perm=[1, 0]), emit.op(site.node, "Reshape", scales, flat)


def _scale(emit: Emitter, site: Linear, x: ir.Value) -> ir.Value:
    """What one step of the code of each row is worth, ``[..., 1]``.

    onnxruntime gives an empty value back as it is instead of its maxima, so their shape is stated: an expert may get
    no token. A row of zeros has a scale of zero, whose quotients are no numbers, whose codes are some, and whose
    products are zeros.
    """
    node = site.node
    largest = _largest(emit, node, emit.op(node, "Abs", x, hint=f"{x.name}/magnitudes"))
    if any(not isinstance(size, int) for size in (x.shape or [None])):
        shape = np.array([*[0] * (site.rank - 1), 1], np.int64)
        largest = emit.op(node, "Reshape", largest, emit.constant("qcompile.rows_of_one", shape))
    return emit.op(node, "Div", largest, _number(emit, _LARGEST), hint=f"{x.name}/scale")


def _largest(emit: Emitter, node: ir.Node, x: ir.Value) -> ir.Value:
    """The maximum of each row, in an axis of size 1."""
    if emit.opset < _AXES_ARE_INPUTS:
        return emit.op(node, "ReduceMax", x, axes=[-1], keepdims=1)
    return emit.op(node, "ReduceMax", x, emit.constant("qcompile.last", np.array([-1], np.int64)), keepdims=1)


def _codes(emit: Emitter, node: ir.Node, x: ir.Value, scale: ir.Value) -> ir.Value:
    """The nearest codes, as unsigned bytes around 128: one operator rounds, shifts and narrows."""
    quotients = emit.op(node, "Div", x, scale, hint=f"{x.name}/quotients")
    zero = emit.constant("qcompile.zero_point", np.array(_ZERO, np.uint8))
    return emit.op(node, "QuantizeLinear", quotients, _number(emit, 1), zero, hint=f"{x.name}/codes")


def _number(emit: Emitter, value: float) -> ir.Value:
    return emit.constant(f"qcompile.{value:g}", np.array(value, np.float32))
