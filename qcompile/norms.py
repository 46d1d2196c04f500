"""Normalizations over the last axis: recognizes those that an exporter spelled out, and makes new ones.

One operator whatever the opset: ``RMSNormalization`` and ``LayerNormalization`` where the standard has them, else
functions of our domain with the same meaning.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.graph import DOMAIN, add_initializer, append_node, ensure_function, ensure_initializer, opset

__all__ = ["fuse_norm", "make_norm", "norm_operator"]


def fuse_norm(model: ir.Model, node: ir.Node) -> None:
    """Replace ``x / sqrt(mean(x²) + ε)`` with its scale, centering and shift, ending anywhere, by one operator."""
    found = _match_core(node)
    if found is None:
        return
    x, epsilon, axis = found
    mean = _match_centering(x, axis)
    centered = mean is not None
    x = mean if centered else x
    output, scale, shift = _match_affine(node.outputs[0], centered)
    size = x.shape[-1] if x.shape is not None and len(x.shape) else None
    if not isinstance(size, int):
        return
    if scale is None:
        scale = add_initializer(model, f"{node.name}_scale", np.ones(size, x.dtype.numpy()))
    made = make_norm(
        model, output.producer(), x, scale, shift, epsilon, centered=centered, name=f"{node.name}_norm", like=output
    )  # fmt: skip
    ir.convenience.replace_all_uses_with(output, made.outputs[0], replace_graph_outputs=True)


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


def _match_core(node: ir.Node) -> tuple[ir.Value, float, int] | None:
    """``(x, ε, axis)`` if the node divides ``x`` by the root of its mean square over its last axis."""
    for x, factor in _pairs(node):
        variance = _match_root(factor, divided=node.op_type == "Div")
        if variance is None:
            continue
        mean, epsilon = variance
        squared = _producer(mean, "ReduceMean")
        if squared is None or not _over_last_axis(squared):
            continue
        if _is_square_of(squared.inputs[0], x):
            return x, epsilon, -1
    return None


def _pairs(node: ir.Node) -> list[tuple[ir.Value, ir.Value]]:
    if node.domain != "" or node.op_type not in ("Mul", "Div") or None in node.inputs:
        return []
    a, b = node.inputs
    return [(a, b)] if node.op_type == "Div" else [(a, b), (b, a)]


def _match_root(value: ir.Value, *, divided: bool) -> tuple[ir.Value, float] | None:
    """``(mean square, ε)`` if ``value`` is the root of their sum (or its reciprocal, unless ``divided``)."""
    value = _uncast(value)
    producer = value.producer()
    if producer is None or producer.domain != "":
        return None
    if divided:
        return _match_sum(producer.inputs[0]) if producer.op_type == "Sqrt" or _power(producer) == 0.5 else None
    if _power(producer) == -0.5:
        return _match_sum(producer.inputs[0])
    if producer.op_type == "Reciprocal":
        return _match_root(producer.inputs[0], divided=True)
    if producer.op_type == "Div" and _scalar(producer.inputs[0]) == 1.0:
        return _match_root(producer.inputs[1], divided=True)
    return None


def _match_sum(value: ir.Value) -> tuple[ir.Value, float] | None:
    add = _producer(value, "Add")
    for mean, constant in ((0, 1), (1, 0)) if add is not None else ():
        epsilon = _scalar(add.inputs[constant])
        if epsilon is not None:
            return add.inputs[mean], epsilon
    return None


def _power(node: ir.Node) -> float | None:
    return _scalar(node.inputs[1]) if node.op_type == "Pow" else None


def _is_square_of(value: ir.Value, x: ir.Value) -> bool:
    value = _uncast(value)
    node = value.producer()
    if node is None:
        return False
    if node.op_type == "Pow" and _scalar(node.inputs[1]) == 2.0:
        return _alike(node.inputs[0], x)
    return node.op_type == "Mul" and _alike(node.inputs[0], x) and _alike(node.inputs[1], x)


def _match_centering(value: ir.Value, axis: int) -> ir.Value | None:
    """``x`` if the value is ``x - mean(x)``."""
    node = _producer(value, "Sub")
    mean = _producer(node.inputs[1], "ReduceMean") if node is not None else None
    if mean is not None and _over_last_axis(mean) and _alike(mean.inputs[0], node.inputs[0]):
        return node.inputs[0]
    return None


def _match_affine(value: ir.Value, centered: bool) -> tuple[ir.Value, ir.Value | None, ir.Value | None]:
    """Follow ``value`` through the constant scale (and shift) that its only reader applies."""
    scaled, scale = _constant_operand(value, "Mul")
    if scale is None:
        return value, None, None
    if centered:
        shifted, shift = _constant_operand(scaled, "Add")
        if shift is not None:
            return shifted, scale, shift
    return scaled, scale, None


def _constant_operand(value: ir.Value, op: str) -> tuple[ir.Value, ir.Value | None]:
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return value, None
    node, index = next(iter(uses))
    if node.op_type != op or node.domain != "":
        return value, None
    other = node.inputs[1 - index]
    size = value.shape[-1] if value.shape is not None and len(value.shape) else None
    if other is None or other.const_value is None or tuple(other.shape) != (size,):
        return value, None
    return node.outputs[0], other


def _producer(value: ir.Value | None, op: str) -> ir.Node | None:
    node = _uncast(value).producer() if value is not None else None
    return node if node is not None and node.op_type == op and node.domain == "" else None


def _uncast(value: ir.Value) -> ir.Value:
    """The value before casts between floating-point types."""
    node = value.producer()
    while node is not None and node.op_type == "Cast" and node.inputs[0].dtype is not None and (
        node.inputs[0].dtype.is_floating_point() and value.dtype is not None and value.dtype.is_floating_point()
    ):  # fmt: skip
        value = node.inputs[0]
        node = value.producer()
    return value


def _alike(a: ir.Value, b: ir.Value) -> bool:
    return _uncast(a) is _uncast(b)


def _scalar(value: ir.Value | None) -> float | None:
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(-1)[0])


def _over_last_axis(node: ir.Node) -> bool:
    if node.attributes.get_int("keepdims", 1) != 1:
        return False
    if "axes" in node.attributes:
        axes = list(node.attributes.get_ints("axes"))
    elif len(node.inputs) > 1 and node.inputs[1] is not None and node.inputs[1].const_value is not None:
        axes = [int(i) for i in node.inputs[1].const_value.numpy().reshape(-1)]
    else:
        return False
    rank = len(node.inputs[0].shape) if node.inputs[0].shape is not None else None
    return axes == [-1] or (rank is not None and axes == [rank - 1])
