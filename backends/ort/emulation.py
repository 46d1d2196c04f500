"""Any block format by functions of standard operators: packed weights, activations quantized as they come.

Products run in float32, so that a result differs from the exact one by the rounding of a float32 sum only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from qcompile.backends.ort.activations import quantize_function
from qcompile.backends.ort.emitter import Emitter
from qcompile.backends.ort.frame import cut, graph_type, prepare, resize, wrap
from qcompile.backends.ort.scales import supported
from qcompile.backends.ort.weights import decode_function, linear_function, lookup_function, packed_parts, packed_width
from qcompile.formats import Format
from qcompile.site_forms import Linear, Lookup
from qcompile.targets import Plan, Scheme

__all__ = ["emit_linear", "emit_lookup", "takes", "takes_lookup"]

_FLOAT = ir.DataType.FLOAT


def takes(scheme: Scheme) -> bool:
    """Every scalar weight format; scalar activation formats whose scales stay within a row."""
    fmt = scheme.activation
    return takes_lookup(scheme) and (fmt is None or isinstance(fmt, Format) and supported(fmt))


def takes_lookup(scheme: Scheme) -> bool:
    """Every scalar weight format: a lookup has no activation to quantize."""
    return isinstance(scheme.weight, Format)


def emit_linear(emit: Emitter, site: Linear, plan: Plan) -> tuple[ir.Value, Mapping[str, Any]]:
    """``LinearX(QuantizeY(x), codes, scales, ...)``; sites that read one value share its quantization."""
    fmt, size = plan.scheme.weight, plan.weight.shape[1]
    x, width = prepare(emit, site, [_FLOAT]), size
    if plan.scheme.activation is not None:
        x, width = _quantized(emit, site, x, plan.scheme.activation, size)
    x = resize(emit, site.node, x, size, width, packed_width(plan.weight))
    emit.define(decode_function, fmt)
    parts = emit.weights(site.weight.name, packed_parts(plan.weight))
    y = emit.call(site.node, emit.define(linear_function, fmt), x, *parts)
    return wrap(emit, site, y, _FLOAT), {}


def _quantized(emit: Emitter, site: Linear, x: ir.Value, fmt: Format, size: int) -> tuple[ir.Value, int]:
    """The quantized input, padded to whole groups, and its width."""
    node, group = site.node, fmt.group or size
    groups = -(-size // group)
    x = resize(emit, node, x, size, size, groups * group)
    name, lead = emit.define(quantize_function, fmt), [0] * (site.rank - 1)
    shapes = {"groups": [*lead, groups, group], "shape": [*lead, groups * group]}
    hint = f"{x.name}/{fmt.name}"
    return emit.shared((name, x), lambda: emit.call(node, name, x, hint=hint, **shapes)), groups * group


def emit_lookup(emit: Emitter, site: Lookup, plan: Plan) -> tuple[ir.Value, Mapping[str, Any]]:
    """``LookupX(indices, codes, scales, ...)``."""
    fmt, size = plan.scheme.weight, plan.weight.shape[1]
    emit.define(decode_function, fmt)
    parts = emit.weights(site.weight.name, packed_parts(plan.weight))
    y = emit.call(site.node, emit.define(lookup_function, fmt), site.indices, *parts)
    if packed_width(plan.weight) != size:
        y = cut(emit, site.node, y, size)
    if graph_type(site.weight) != _FLOAT:
        y = emit.op(site.node, "Cast", y, to=int(graph_type(site.weight)))
    return y, {}
