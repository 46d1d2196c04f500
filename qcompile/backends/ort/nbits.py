"""onnxruntime's own operators for integer weights in blocks: MatMulNBits and GatherBlockQuantized.

What was measured about MatMulNBits (onnxruntime 1.31): four-bit weights are fast at every accuracy level, weights of
eight and two bits only at level 4 (float activations are 40 to 70 times slower than a float product), and two bits only
in blocks of 32, 64 and 128 (in others level 4 is float, without a word); three bits are rejected. Level 4 quantizes the
activation to int8 in the blocks of the weight, a relative error of 4e-3 to 7e-3; levels 0 and 1 keep it in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.analysis.forms import Linear, Lookup
from qcompile.backends.ort.emitter import Emitter, Parts
from qcompile.backends.ort.frame import cut, graph_type, prepare, wrap
from qcompile.formats import Format, Kind, Quantized
from qcompile.formats.layouts import to_matmulnbits
from qcompile.targets.plans import Plan
from qcompile.targets.scheme import Scheme
from qcompile.targets.target import Target

__all__ = ["accuracy_level", "emit_linear", "emit_lookup", "pack", "rounds_input_to", "takes"]

_DOMAIN = "com.microsoft"
_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)  # what both operators compute in


def takes(scheme: Scheme) -> bool:
    """Integers of 4 or 8 bits in blocks of a power of two from 16 to 256, of 2 in 32 to 128; activations in float."""
    fmt = scheme.weight
    if not isinstance(fmt, Format):
        return False
    groups = {2: (32, 64, 128), 4: (16, 32, 64, 128, 256), 8: (16, 32, 64, 128, 256)}.get(fmt.bits, ())
    return fmt.element.kind is Kind.INTEGER and scheme.activation is None and fmt.group in groups


def accuracy_level(bits: int, target: Target) -> tuple[int, str]:
    """The accuracy level of a layer, and why."""
    asked = target.options.get("accuracy_level", 4)
    if bits in (2, 8) and asked != 4:
        return 4, "weights of two and of eight bits are fast only with int8 activations"
    if asked == 4 and bits == 4:
        return 4, "int8 activations are fastest, and their error is far below that of 4-bit weights"
    return asked, "the target's level"


def rounds_input_to(fmt: Format, target: Target) -> str | None:
    """The format of the input of MatMulNBits, whose level 4 rounds each block of it to int8."""
    return f"int8-g{fmt.group}-fp32" if accuracy_level(fmt.bits, target)[0] == 4 else None


def pack(weight: Quantized) -> dict[str, np.ndarray]:
    """Codes ``[N, groups, bytes]``, scales ``[N, groups]``, zero points ``[N, bytes]`` if any."""
    packed = to_matmulnbits(weight)
    rows, groups, _ = packed.b.shape
    parts = {"codes": packed.b.numpy(), "scales": packed.scales.view(rows, groups).numpy()}
    if packed.zero_points is not None:
        parts["zero_points"] = packed.zero_points.view(rows, -1).numpy()
    return parts


def emit_linear(emit: Emitter, site: Linear, plan: Plan, parts: Parts) -> tuple[ir.Value, Mapping[str, Any]]:
    """One MatMulNBits."""
    emit.model.graph.opset_imports.setdefault(_DOMAIN, 1)
    x, (rows, size) = prepare(emit, site, _TYPES), plan.weight.shape
    computed = graph_type(site.weight) if graph_type(site.weight) in _TYPES else _TYPES[0]
    fmt = plan.weight.format
    level, why = accuracy_level(fmt.bits, emit.target)
    shape: dict[str, Any] = {"K": size, "N": rows, "bits": fmt.bits, "block_size": fmt.group}
    operands = _constants(emit, site.weight, parts, computed)
    y = emit.op(site.node, "MatMulNBits", x, *operands, domain=_DOMAIN, accuracy_level=level, **shape)
    said = {"accuracy_level": level, "why": why}
    if (rounded := rounds_input_to(fmt, emit.target)) is not None:
        said["rounds_input_to"] = rounded
    return wrap(emit, site, y, computed), said


def _constants(emit: Emitter, weight: ir.Value, parts: Parts, dtype: ir.DataType) -> list[ir.Value]:
    """The parts, with scales in the type that is computed in."""
    return emit.weights(weight, {**parts, "scales": np.asarray(parts["scales"]).astype(dtype.numpy(), copy=False)})


def emit_lookup(emit: Emitter, site: Lookup, plan: Plan, parts: Parts) -> tuple[ir.Value, Mapping[str, Any]]:
    """One GatherBlockQuantized. Its table is a reshape of MatMulNBits' codes, so that a tied head shares the bytes."""
    emit.model.graph.opset_imports.setdefault(_DOMAIN, 1)
    fmt, (rows, size), node = plan.weight.format, plan.weight.shape, site.node
    computed = graph_type(site.weight) if graph_type(site.weight) in _TYPES else _TYPES[0]
    codes, scales, *zero_points = _constants(emit, site.weight, parts, computed)
    flat = emit.constant("qcompile.rows", np.array([rows, -1], np.int64))
    table = emit.op(node, "Reshape", codes, flat)
    settings: dict[str, Any] = {"bits": fmt.bits, "block_size": fmt.group, "gather_axis": 0, "quantize_axis": 1}
    inputs = (table, site.indices, scales, *zero_points)
    y = emit.op(node, "GatherBlockQuantized", *inputs, domain=_DOMAIN, **settings)
    if size % (fmt.group or size):
        y = cut(emit, node, y, size)
    if computed != graph_type(site.weight):
        y = emit.op(node, "Cast", y, to=int(graph_type(site.weight)))
    return y, {}
