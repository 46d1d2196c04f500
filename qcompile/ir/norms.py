"""Normalizations over the last axis: puts one in the place of those that an exporter spelled out, and makes new ones.

One operator whatever the opset: ``RMSNormalization`` and ``LayerNormalization`` where the standard has them, else
functions of our domain with the same meaning.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.ir.graph import DOMAIN, add_initializer, append_node, ensure_function, ensure_initializer, is_read, opset
from qcompile.passes.spelled_norms import find_norm

__all__ = ["fuse_norm", "make_norm", "norm_operator", "split_skip"]


def fuse_norm(model: ir.Model, node: ir.Node) -> None:
    """Replace a norm that the node is the core of, with its scale, centering and shift, by one operator."""
    found = find_norm(node)
    size = found.x.shape[-1] if found is not None and found.x.shape is not None and len(found.x.shape) else None
    if not isinstance(size, int):
        return
    scale, shift = (v if v is None else _vector(model, v, size) for v in (found.scale, found.shift))
    if scale is None:
        scale = add_initializer(model, f"{node.name}_scale", np.ones(size, found.x.dtype.numpy()))
    made = make_norm(
        model, found.output.producer(), found.x, scale, shift, found.epsilon, centered=found.centered,
        name=f"{node.name}_norm", like=found.output,
    )  # fmt: skip
    ir.convenience.replace_all_uses_with(found.output, made.outputs[0], replace_graph_outputs=True)


def _vector(model: ir.Model, value: ir.Value, size: int) -> ir.Value:
    """A constant without the axes of size one in front."""
    if len(value.shape) == 1:
        return value
    return add_initializer(model, f"{value.name}_flat", value.const_value.numpy().reshape(size))


#: onnxruntime's norms of a sum: whether they subtract the mean.
_SKIPS = {"SkipLayerNormalization": True, "SkipSimplifiedLayerNormalization": False}


def split_skip(model: ir.Model, node: ir.Node) -> None:
    """Put onnxruntime's norm of a sum apart into the sum, which others may read, and the norm."""
    if node.domain != "com.microsoft" or node.op_type not in _SKIPS or any(is_read(node, i) for i in (1, 2)):
        return
    centered = _SKIPS[node.op_type]
    x, skip, scale, *rest = node.inputs
    shift = rest.pop(0) if centered and rest else None
    for name, term in zip(("sum", "bias"), (skip, *rest), strict=False):
        if term is not None:
            x = append_node(node, "Add", [x, term], name=f"{node.name}_{name}", like=x).outputs[0]
    epsilon = node.attributes.get_float("epsilon", 1e-12)
    made = make_norm(model, node, x, scale, shift, epsilon, centered=centered, name=f"{node.name}_norm", like=x)
    for old, new in ((node.outputs[0], made.outputs[0]), *((value, x) for value in node.outputs[3:])):
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)


def norm_operator(model: ir.Model, *, centered: bool) -> tuple[str, str]:
    """The (operator, domain) for a norm over the last axis in the graph's opset, defined if it is ours."""
    version = opset(model)
    if centered and version >= 17:
        return "LayerNormalization", ""
    if not centered and version >= 23:
        return "RMSNormalization", ""
    read = "ax = Constant <value = int64[1] {-1}> ()\n" if version >= 18 else ""
    mean = "ReduceMean(%s, ax)" if version >= 18 else "ReduceMean <axes = [-1]> (%s)"
    tail = f"sq = Mul(d, d)\n m = {mean % 'sq'}\n v = Add(m, epsilon)\n s = Sqrt(v)\n n = Div(d, s)"
    if not centered:
        text = f"(x, scale, epsilon) => (y) {{ {read} d = Identity(x)\n {tail}\n y = Mul(n, scale) }}"
        return ensure_function(model, "RMSNorm", text), DOMAIN
    centered_x = f"c = {mean % 'x'}\n d = Sub(x, c)"
    affine = "w = Mul(n, scale)\n y = Add(w, shift)"
    text = f"(x, scale, shift, epsilon) => (y) {{ {read} {centered_x}\n {tail}\n {affine} }}"
    return ensure_function(model, "LayerNorm", text), DOMAIN


def make_norm(
    model: ir.Model,
    before: ir.Node,
    x: ir.Value,
    scale: ir.Value,
    shift: ir.Value | None,
    epsilon: float,
    *,
    centered: bool,
    name: str,
    like: ir.Value,
) -> ir.Node:
    """A norm over the last axis in front of a node; ``shift`` is for centered norms alone."""
    op, domain = norm_operator(model, centered=centered)
    if not domain:
        inputs = [x, scale] + ([shift] if shift is not None else [])
        return append_node(before, op, inputs, {"axis": -1, "epsilon": epsilon}, name=name, like=like)
    dtype = scale.dtype.numpy()
    constant = ensure_initializer(model, f"epsilon_{epsilon:g}_{scale.dtype.name.lower()}", np.asarray(epsilon, dtype))
    if centered and shift is None:
        shift = add_initializer(model, f"{name}_shift", np.zeros(scale.shape.numpy(), dtype))
    inputs = [x, scale, shift, constant] if centered else [x, scale, constant]
    return append_node(before, op, inputs, name=name, domain=domain, like=like)
