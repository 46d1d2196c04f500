"""Eight-bit weights per channel and activations per token, multiplied as integers.

The activation is symmetric, one scale a row: exactly the format that calibration and assignment reason about, and no
token depends on the others of its batch. (DynamicQuantizeLinear has one scale for the whole tensor.) Codes go to
MatMulInteger shifted by 128 into unsigned bytes, for which x86 has instructions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.analysis.forms import Linear
from qcompile.backends.ort.body import Body
from qcompile.backends.ort.emitter import Emitter, Parts
from qcompile.backends.ort.frame import prepare, wrap
from qcompile.backends.ort.scales import divisor, effective_scales
from qcompile.formats import Format, Kind, Quantized, ScaleType
from qcompile.formats.catalogue import AnyFormat
from qcompile.targets.plans import Plan
from qcompile.targets.scheme import Scheme

__all__ = ["emit", "pack", "scale_function", "takes"]

_ZERO = 128


def takes(scheme: Scheme) -> bool:
    """Signed eight-bit integers with one float scale per output channel and per row of the input."""
    return scheme.activation is not None and all(map(_fits, (scheme.weight, scheme.activation)))


def _fits(fmt: AnyFormat | None) -> bool:
    if not isinstance(fmt, Format):
        return False
    signed = fmt.element.kind is Kind.INTEGER and fmt.bits == 8 and fmt.element.levels[0] == -127
    return signed and fmt.group is None and fmt.scale is ScaleType.FP32 and not fmt.zero_point


def scale_function(fmt: Format, opset: int) -> ir.Function:
    """``x [..., K] -> scale [..., 1]``: what one step of the code of each row is worth."""
    body = Body(opset)
    ((scale, _),) = effective_scales(body, body.input("x"), fmt)
    return body.function("ScaleInteger", body.column(scale))


def codes_function(fmt: Format, opset: int) -> ir.Function:
    """``x, scale -> codes``: the nearest codes, as unsigned bytes around 128."""
    body = Body(opset)
    x, scale = body.input("x"), body.input("scale")
    codes = body.Round(body.Div(x, divisor(body, scale, fmt)))
    shifted = body.to(body.Add(codes, body.constant(float(_ZERO))), ir.DataType.UINT8)
    return body.function("QuantizeInteger", shifted)


def linear_function(fmt: Format, opset: int) -> ir.Function:
    """``codes [..., K], scale [..., 1], weight [K, N], weight_scale [N] -> y [..., N]``."""
    body = Body(opset)
    codes, scale, weight, weight_scale = map(body.input, ("codes", "scale", "weight", "weight_scale"))
    product = body.MatMulInteger(codes, weight, body.constant(_ZERO, np.uint8))
    product = body.Mul(body.to(product, ir.DataType.FLOAT), scale)
    return body.function("LinearInteger", body.Mul(product, weight_scale))


def pack(weight: Quantized) -> dict[str, np.ndarray]:
    """The weight ``[K, N]`` as signed bytes, and its scales ``[N]``."""
    stored = weight.codes[:, : weight.shape[1]].numpy().view(np.int8)
    return {"weight": np.ascontiguousarray(stored.T), "scales": weight.scales.flatten().numpy()}


def emit(emit: Emitter, site: Linear, plan: Plan, parts: Parts) -> tuple[ir.Value, Mapping[str, Any]]:
    """``LinearInteger(QuantizeInteger(x), ...)``; sites that read one value share its codes."""
    node, fmt = site.node, plan.scheme.activation
    x = prepare(emit, site, [ir.DataType.FLOAT])
    scale_name, codes_name = emit.define(scale_function, fmt), emit.define(codes_function, fmt)
    scale = emit.shared((scale_name, x), lambda: emit.call(node, scale_name, x, hint=f"{x.name}/scale"))
    codes = emit.shared((codes_name, x), lambda: emit.call(node, codes_name, x, scale, hint=f"{x.name}/codes"))
    operands = emit.weights(site.weight, parts)
    y = emit.call(node, emit.define(linear_function, fmt), codes, scale, *operands)
    return wrap(emit, site, y, ir.DataType.FLOAT), {}
