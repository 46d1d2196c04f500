"""Any block format by functions of standard operators: packed weights, activations quantized as they come.

Products run in float32, so that a result differs from the exact one by the rounding of a float32 sum only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.analysis.forms import Convolution, Linear, Lookup, Stack
from qcompile.backends.ort.activations import quantize_function, static_function
from qcompile.backends.ort.emitter import Emitter, Parts
from qcompile.backends.ort.frame import cast, cut, graph_type, prepare, resize, transpose, whole_codes, wrap
from qcompile.backends.ort.scales import supported
from qcompile.backends.ort.weights import decode_function, linear_function, lookup_function, packed_width
from qcompile.formats import Format, Kind
from qcompile.formats.static import Range
from qcompile.ir.required import operands
from qcompile.targets.plans import Plan
from qcompile.targets.scheme import Scheme

__all__ = [
    "emit_convolution", "emit_linear", "emit_lookup", "emit_stack", "in_range", "takes", "takes_decoded",
    "takes_lookup",
]  # fmt: skip

_FLOAT = ir.DataType.FLOAT


def takes(scheme: Scheme) -> bool:
    """Every scalar weight format; scalar activation formats whose scales stay within a row."""
    fmt = scheme.activation
    return takes_lookup(scheme) and (fmt is None or fmt.static or supported(fmt))


def takes_decoded(scheme: Scheme) -> bool:
    """Integers, activations as they are."""
    fmt = scheme.weight
    return scheme.activation is None and isinstance(fmt, Format) and fmt.element.kind is Kind.INTEGER


def takes_lookup(scheme: Scheme) -> bool:
    """Every scalar weight format: a lookup has no activation to quantize."""
    return isinstance(scheme.weight, Format)


def emit_linear(emit: Emitter, site: Linear, plan: Plan, parts: Parts) -> tuple[ir.Value, Mapping[str, Any]]:
    """``LinearX(QuantizeY(x), codes, scales, ...)``; sites that read one value share its quantization."""
    fmt, size = plan.weight.format, plan.weight.shape[1]
    x, width = prepare(emit, site, [_FLOAT]), size
    if plan.activation is not None:
        x, width = _quantized(emit, site, x, plan, size)
    x = resize(emit, site.node, x, size, width, packed_width(plan.weight))
    emit.define(decode_function, fmt)
    weights = emit.weights(site.weight, parts)
    y = emit.call(site.node, emit.define(linear_function, fmt), x, *weights)
    return wrap(emit, site, y, _FLOAT), {}


def emit_stack(emit: Emitter, site: Stack, plan: Plan, parts: Parts) -> tuple[ir.Value, Mapping[str, Any]]:
    """The operator itself, in float32, on the stack ``DecodeX(codes, scales, ...)`` laid out as it was."""
    node, reader, size, dtype = site.node, site.reader, plan.weight.shape[1], graph_type(site.weight)
    x = prepare(emit, site, [_FLOAT])
    if plan.activation is not None:
        x, width = _quantized(emit, site, x, plan, size)
        x = resize(emit, node, x, size, width, size)
    stack = _decoded(emit, site.reader, site, plan, parts)
    if dtype != _FLOAT and reader is not node:
        stack = cast(emit, reader, stack, dtype)
    if reader is not node:
        rest = [stack if value is site.weight else value for value in reader.inputs]
        emit.replace(reader, emit.op(reader, reader.op_type, *rest, **_attributes(reader)))
    given = [x if value is site.x else stack if value is site.weight else value for value in operands(node)]
    if dtype != _FLOAT:
        given = [value if value.dtype == _FLOAT else cast(emit, node, value, _FLOAT) for value in given]
    y = emit.op(node, node.op_type, *given, **_attributes(node))
    return (y if dtype == _FLOAT else cast(emit, node, y, dtype)), {}


def emit_convolution(emit: Emitter, site: Convolution, plan: Plan, parts: Parts) -> tuple[ir.Value, Mapping[str, Any]]:
    """The operator itself, in float32, with the kernel ``DecodeX(codes, scales, ...)`` laid out as it was."""
    node, dtype = site.node, graph_type(site.weight)
    x, activation = prepare(emit, site, [_FLOAT]), plan.activation
    if isinstance(activation, Range):
        x = in_range(emit, node, x, activation)
    elif activation is not None:
        x = emit.shared(("rounded", x, activation.name), partial(_rounded_places, emit, site, x, plan))
    given = [x, _decoded(emit, node, site, plan, parts)]
    if site.bias is not None:
        given.append(site.bias if dtype == _FLOAT else cast(emit, node, site.bias, _FLOAT))
    y = emit.op(node, node.op_type, *given, **_attributes(node))
    return (y if dtype == _FLOAT else cast(emit, node, y, dtype)), {}


def _rounded_places(emit: Emitter, site: Convolution, x: ir.Value, plan: Plan) -> ir.Value:
    """What a convolution reads, rounded at each place along its channels."""
    node, rank, size = site.node, site.rank, site.channels
    last = transpose(emit, node, x, (0, *range(2, rank), 1))
    rounded, width = _quantized(emit, site, last, plan, size)
    rounded = resize(emit, node, rounded, size, width, size)
    return emit.op(node, "Transpose", rounded, perm=(0, rank - 1, *range(1, rank - 1)))


def _decoded(emit: Emitter, node: ir.Node, site: Stack | Convolution, plan: Plan, parts: Parts) -> ir.Value:
    """The whole weight in float32 in front of a node: the rows of its matrix, put back as the operator has them."""
    fmt, size, layout = plan.weight.format, plan.weight.shape[1], site.layout
    weights = emit.weights(site.weight, parts)
    rows = emit.call(node, emit.define(decode_function, fmt), *weights)
    if packed_width(plan.weight) != size:
        rows = cut(emit, node, rows, size)
    value = _reshaped(emit, node, rows, layout.ordered)
    if layout.back != tuple(sorted(layout.back)):
        value = emit.op(node, "Transpose", value, perm=layout.back)
    return value if layout.parts == layout.shape else _reshaped(emit, node, value, layout.shape)


def _reshaped(emit: Emitter, node: ir.Node, value: ir.Value, shape: Sequence[int]) -> ir.Value:
    return emit.op(node, "Reshape", value, emit.constant("qcompile.shape", np.array(shape, np.int64)))


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _quantized(
    emit: Emitter, site: Linear | Stack | Convolution, x: ir.Value, plan: Plan, size: int
) -> tuple[ir.Value, int]:
    """The quantized input, padded to whole groups, and its width."""
    node, fmt = site.node, plan.scheme.activation
    if fmt is None or (fmt.static and fmt.group is None):
        return in_range(emit, node, x, plan.calibrated), size
    if fmt.whole:
        return emit.shared(("read", x, fmt.name), partial(_read_whole, emit, node, x)), size
    group = fmt.group or size
    groups = -(-size // group)
    x = resize(emit, node, x, size, size, groups * group)
    name, lead = emit.define(static_function if fmt.static else quantize_function, fmt), [0] * (site.rank - 1)
    shapes = {"groups": [*lead, groups, group], "shape": [*lead, groups * group]}
    hint, given = f"{x.name}/{fmt.name}", [x]
    if fmt.static:
        given.append(emit.constant(f"{x.name}.scale", np.array(plan.calibrated.scale, np.float32)))
    made = partial(emit.call, node, name, *given, hint=hint, **shapes)
    return emit.shared((name, x, plan.range), made), groups * group


def _read_whole(emit: Emitter, node: ir.Node, x: ir.Value) -> ir.Value:
    return emit.op(node, "DequantizeLinear", *whole_codes(emit, node, x), hint=f"{x.name}/read")


def in_range(emit: Emitter, node: ir.Node, x: ir.Value, within: Range) -> ir.Value:
    """A value rounded by arithmetic: between QuantizeLinear and others, onnxruntime would round weights once more."""
    return emit.shared(("range", x, within), partial(_in_range, emit, node, x, within))


def _in_range(emit: Emitter, node: ir.Node, x: ir.Value, within: Range) -> ir.Value:
    numbers = (("scale", within.scale), ("zero_point", within.zero_point))
    constants = (emit.constant(f"{x.name}.{name}", np.array(number, np.float32)) for name, number in numbers)
    name = emit.define(static_function, within.format)
    return emit.call(node, name, x, *constants, hint=f"{x.name}/{within.format.name}")


def emit_lookup(emit: Emitter, site: Lookup, plan: Plan, parts: Parts) -> tuple[ir.Value, Mapping[str, Any]]:
    """``LookupX(indices, codes, scales, ...)``."""
    fmt, size = plan.weight.format, plan.weight.shape[1]
    emit.define(decode_function, fmt)
    weights = emit.weights(site.weight, parts)
    y = emit.call(site.node, emit.define(lookup_function, fmt), site.indices, *weights)
    if packed_width(plan.weight) != size:
        y = cut(emit, site.node, y, size)
    if graph_type(site.weight) != _FLOAT:
        y = emit.op(site.node, "Cast", y, to=int(graph_type(site.weight)))
    return y, {}
