"""The form that TensorRT reads, beside the graph: blocks of NVFP4 and MXFP8 by its own operators, 8 bits as pairs.

Networks are strongly typed there: a product reads two operands of one type, and what stands around it keeps its own.
The operators are those that its ONNX parser knows, as NVIDIA's Model Optimizer writes them (github.com/NVIDIA/
TensorRT-Model-Optimizer, ``torch/quantization/export_onnx.py`` and ``onnx/export``). onnxruntime does not run them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx.inliner import inline_local_functions

from qcompile.analysis.forms import Linear
from qcompile.backends.ort.emitter import Emitter, Parts
from qcompile.backends.ort.frame import cast, graph_type, prepare, resize, wrap
from qcompile.formats import Format, Kind, Quantized, ScaleType
from qcompile.formats.rounding import decode_element
from qcompile.ir.graph import append_node
from qcompile.targets.plans import Plan
from qcompile.targets.scheme import Scheme

__all__ = ["FILE", "emit_fp4", "emit_mxfp8", "pack_fp4", "pack_mxfp8", "takes_fp4", "takes_mxfp8", "write"]

FILE = "model.tensorrt.onnx"

#: Where its parser looks for the operators that ONNX lacks.
_DOMAIN = "trt"

#: The types that its quantizers of blocks read; others are cast to the first.
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

#: The largest number of the first of these.
_LARGEST = 65504.0

#: Axes that they read at most.
_AXES = 3


def takes_fp4(scheme: Scheme) -> bool:
    """Two levels of scales on both sides, the upper one of inputs a constant."""
    weight, x = scheme.weight, scheme.activation
    if not isinstance(weight, Format) or x is None or not x.static:
        return False
    return weight.group == x.group == 16 and weight.scale is ScaleType.E4M3 and weight.tensor_scale is not None


def takes_mxfp8(scheme: Scheme) -> bool:
    """FP8 in blocks of 32 with scales that are powers of two, the same on both sides."""
    fmt = scheme.weight
    if not isinstance(fmt, Format) or fmt != scheme.activation or fmt.scale is not ScaleType.E8M0:
        return False
    return fmt.element.kind is Kind.FLOAT and (fmt.bits, fmt.group) == (8, 32)


def pack_fp4(weight: Quantized) -> Parts:
    """Levels ``[out, in]``, scales of blocks in E4M3 and the one above them."""
    assert weight.tensor_scale is not None
    return {
        "f4": decode_element(weight.codes, weight.format.element).numpy().astype(ml_dtypes.float4_e2m1fn),
        "f8_scale": weight.scales.numpy().astype(ml_dtypes.float8_e4m3fn),
        "f32_scale": weight.tensor_scale.reshape(()).numpy(),
    }


def pack_mxfp8(weight: Quantized) -> Parts:
    """Levels ``[out, in]`` in E4M3, and the exponents of the scales of blocks, 127 too large."""
    exponents = np.log2(np.maximum(weight.scales.numpy(), 2.0**-127)) + 127
    levels = decode_element(weight.codes, weight.format.element).numpy()
    return {"f8": levels.astype(ml_dtypes.float8_e4m3fn), "scale": np.rint(exponents).astype(np.uint8)}


def emit_fp4(emit: Emitter, site: Linear, plan: Plan, parts: Parts) -> tuple[ir.Value, Mapping[str, Any]]:
    """Codes and scales of both operands, each read back by two DequantizeLinear, in front of a product in 16 bits."""
    half = _half(site, plan)
    x = _blocks(emit, site, half, plan)
    upper = emit.constant(f"{site.x.name}.f32_scale", np.array(plan.calibrated.scale, np.float32))
    read = emit.shared(("fp4", x, upper), partial(_fp4, emit, site, x, upper, half))
    codes, scales, above = emit.weights(site.weight, parts)
    steps = emit.op(site.node, "DequantizeLinear", scales, above, hint=f"{site.weight.name}/scales")
    decoded = emit.op(site.node, "DequantizeLinear", codes, steps, axis=-1, block_size=16)
    return _product(emit, site, read, cast(emit, site.node, decoded, half), half), {}


def _fp4(emit: Emitter, site: Linear, x: ir.Value, upper: ir.Value, half: ir.DataType) -> ir.Value:
    how = {"axis": -1, "block_size": 16, "scale_type": int(ir.DataType.FLOAT8E4M3FN)}
    codes, scales = _quantized(emit, site, "TRT_FP4DynamicQuantize", [x, upper], how)
    steps = emit.op(site.node, "DequantizeLinear", scales, upper, hint=f"{x.name}/scales")
    read = emit.op(site.node, "DequantizeLinear", codes, steps, axis=-1, block_size=16, hint=f"{x.name}/fp4")
    return cast(emit, site.node, read, half)


def emit_mxfp8(emit: Emitter, site: Linear, plan: Plan, parts: Parts) -> tuple[ir.Value, Mapping[str, Any]]:
    """Codes and scales of both operands, read back in front of a product in 16 bits."""
    half = _half(site, plan)
    x = _blocks(emit, site, half, plan)
    read = emit.shared(("mxfp8", x), partial(_mxfp8, emit, site, x, half))
    return _product(emit, site, read, _mxfp8_read(emit, site, emit.weights(site.weight, parts), half), half), {}


def _mxfp8(emit: Emitter, site: Linear, x: ir.Value, half: ir.DataType) -> ir.Value:
    how = {"axis": -1, "block_size": 32, "output_dtype": int(ir.DataType.FLOAT8E4M3FN)}
    return _mxfp8_read(emit, site, _quantized(emit, site, "TRT_MXFP8DynamicQuantize", [x], how), half)


def _mxfp8_read(emit: Emitter, site: Linear, stored: Sequence[ir.Value], half: ir.DataType) -> ir.Value:
    return emit.op(
        site.node, "TRT_MXFP8DequantizeLinear", *stored, domain=_DOMAIN, axis=-1, block_size=32, output_dtype=int(half)
    )


def _quantized(
    emit: Emitter, site: Linear, op: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any]
) -> Sequence[ir.Value]:  # fmt: skip
    """Codes and scales that an operator of two results computes."""
    name = emit.unique(f"{inputs[0].name}/codes")
    made = append_node(site.node, op, inputs, attributes, name=name, domain=_DOMAIN, outputs=2).outputs
    made[1].name = emit.unique(f"{inputs[0].name}/scales_of_codes")
    return made


def _half(site: Linear, plan: Plan) -> ir.DataType:
    """The 16 bits in which a product is computed: the graph's own, or those that hold its input's range."""
    if (own := graph_type(site.weight)) in _HALVES:
        return own
    within = plan.range
    if within is None or within.format.tensor_scale is None:
        return _HALVES[0]
    return _HALVES[within.scale * within.format.element.max * within.format.tensor_scale > _LARGEST]


def _blocks(emit: Emitter, site: Linear, half: ir.DataType, plan: Plan) -> ir.Value:
    """The input in whole blocks and of 16 bits, with at most three axes."""
    own, size = graph_type(site.weight), plan.weight.shape[1]
    x = resize(emit, site.node, prepare(emit, site, [own]), size, size, plan.weight.codes.shape[1])
    if site.rank > _AXES:
        x = emit.shared(("flat", x), partial(_shaped, emit, site, x, [0, -1, plan.weight.codes.shape[1]]))
    return x if own == half else emit.shared(("cast", x, half), partial(cast, emit, site.node, x, half))


def _shaped(emit: Emitter, site: Linear, x: ir.Value, shape: Sequence[int]) -> ir.Value:
    return emit.op(site.node, "Reshape", x, emit.constant("qcompile.shape", np.array(shape, np.int64)))


def _product(emit: Emitter, site: Linear, x: ir.Value, weight: ir.Value, half: ir.DataType) -> ir.Value:
    turned = emit.op(site.node, "Transpose", weight, perm=(1, 0))
    y = emit.op(site.node, "MatMul", x, turned)
    if site.rank > _AXES:
        before = prepare(emit, site, [graph_type(site.weight)])
        lead = emit.op(site.node, "Shape", before, end=-1)
        last = emit.constant("qcompile.features", np.array([-1], np.int64))
        y = emit.op(site.node, "Reshape", y, emit.op(site.node, "Concat", lead, last, axis=0))
    return wrap(emit, site, y, half)


def write(model: ir.Model, folder: Path) -> str:
    """Write a lowered graph, functions of ours as the operators that they are made of; return the name of the file."""
    model.graph.opset_imports[_DOMAIN] = 1
    proto = ir.to_proto(ir.external_data.load_to_model(model))
    onnx.save(inline_local_functions(proto), folder / FILE)
    return FILE
