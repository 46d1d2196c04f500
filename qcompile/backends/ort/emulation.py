"""Any block format by functions of standard operators: packed weights, activations quantized as they come.

Products run in float32, so that a result differs from the exact one by the rounding of a float32 sum only.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.analysis.forms import Linear, Lookup, Stack
from qcompile.backends.ort.activations import quantize_function, static_function
from qcompile.backends.ort.emitter import Emitter, Parts
from qcompile.backends.ort.frame import cast, cut, graph_type, prepare, resize, wrap
from qcompile.backends.ort.scales import supported
from qcompile.backends.ort.weights import decode_function, linear_function, lookup_function, packed_width
from qcompile.formats import Format
from qcompile.formats.static import Range
from qcompile.ir.required import operands, sizes_of
from qcompile.targets.plans import Plan
from qcompile.targets.scheme import Scheme

__all__ = ["emit_linear", "emit_lookup", "emit_stack", "takes", "takes_lookup"]

_FLOAT = ir.DataType.FLOAT


def takes(scheme: Scheme) -> bool:
    """Every scalar weight format; scalar activation formats whose scales stay within a row."""
    fmt = scheme.activation
    return takes_lookup(scheme) and (fmt is None or fmt.static or supported(fmt))


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
    stack = _decoded_stack(emit, site, plan, parts)
    if reader is not node:
        rest = [stack if value is site.weight else value for value in reader.inputs]
        emit.replace(reader, emit.op(reader, reader.op_type, *rest, **_attributes(reader)))
    given = [x if value is site.x else stack if value is site.weight else value for value in operands(node)]
    if dtype != _FLOAT:
        given = [value if value.dtype == _FLOAT else cast(emit, node, value, _FLOAT) for value in given]
    y = emit.op(node, node.op_type, *given, **_attributes(node))
    return (y if dtype == _FLOAT else cast(emit, node, y, dtype)), {}


def _decoded_stack(emit: Emitter, site: Stack, plan: Plan, parts: Parts) -> ir.Value:
    """The whole stack in the graph's type: rows of one matrix after the other, the contracted axis put back."""
    node, fmt, size = site.reader, plan.weight.format, plan.weight.shape[1]
    weights = emit.weights(site.weight, parts)
    rows = emit.call(node, emit.define(decode_function, fmt), *weights)
    if packed_width(plan.weight) != size:
        rows = cut(emit, node, rows, size)
    shape = list(sizes_of(site.weight))
    del shape[site.axis]
    target = emit.constant(f"{site.weight.name}.shape", np.array([*shape, size], np.int64))
    stack, order = emit.op(node, "Reshape", rows, target), list(range(len(shape)))
    order.insert(site.axis, len(shape))
    if order != sorted(order):
        stack = emit.op(node, "Transpose", stack, perm=order)
    dtype = graph_type(site.weight)
    return stack if dtype == _FLOAT or site.reader is site.node else cast(emit, node, stack, dtype)


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _quantized(emit: Emitter, site: Linear | Stack, x: ir.Value, plan: Plan, size: int) -> tuple[ir.Value, int]:
    """The quantized input, padded to whole groups, and its width."""
    node, fmt = site.node, plan.scheme.activation
    if fmt is None or fmt.static:
        return emit.shared(("static", x, plan.calibrated), partial(_in_range, emit, node, x, plan.calibrated)), size
    group = fmt.group or size
    groups = -(-size // group)
    x = resize(emit, node, x, size, size, groups * group)
    name, lead = emit.define(quantize_function, fmt), [0] * (site.rank - 1)
    shapes = {"groups": [*lead, groups, group], "shape": [*lead, groups * group]}
    hint = f"{x.name}/{fmt.name}"
    return emit.shared((name, x), lambda: emit.call(node, name, x, hint=hint, **shapes)), groups * group


def _in_range(emit: Emitter, node: ir.Node, x: ir.Value, within: Range) -> ir.Value:
    """A value rounded by arithmetic: between QuantizeLinear and others, onnxruntime would round weights once more."""
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
