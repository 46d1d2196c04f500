"""Normalizations over the last axis: puts one in the place of those that an exporter spelled out, and makes new ones.

One operator whatever the opset: ``RMSNormalization`` and ``LayerNormalization`` where the standard has them, else
functions of our domain with the same meaning.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.ir.functions import DOMAIN, ensure_function, opset
from qcompile.ir.graph import add_initializer, append_node, ensure_initializer
from qcompile.ir.required import dtype_of, sizes_of

__all__ = ["make_norm", "norm_operator"]


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
    dtype = dtype_of(scale)
    content = np.asarray(epsilon, dtype.numpy())
    constant = ensure_initializer(model, f"epsilon_{epsilon:g}_{dtype.name.lower()}", content)
    if not centered:
        return append_node(before, op, [x, scale, constant], name=name, domain=domain, like=like)
    if shift is None:
        shift = add_initializer(model, f"{name}_shift", np.zeros(sizes_of(scale), dtype.numpy()))
    return append_node(before, op, [x, scale, shift, constant], name=name, domain=domain, like=like)
