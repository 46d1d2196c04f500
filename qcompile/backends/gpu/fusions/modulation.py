"""adaLN: ``x · (1 + scale) + shift`` becomes one node."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.backends.gpu.fusions.patterns import commuted, made_by, number, put, sole_reader

__all__ = ["fuse"]


def fuse(model: ir.Model) -> None:
    """Rewrite every modulation of the main graph."""
    for node in list(model.graph):
        if node.op_type == "Add" and node.domain == "":
            _modulate(node)


def _modulate(node: ir.Node) -> None:
    for product, shift in commuted(node):
        mul = made_by(product, "Mul")
        if mul is None or sole_reader(product) is not node or not _broadcasts(shift, product):
            continue
        for x, factor in commuted(mul):
            scale = _one_plus(factor)
            if scale is not None and _broadcasts(scale, x) and x.const_value is None and x.shape == product.shape:
                put(node, "Modulate", [x, shift, scale])
                return


def _one_plus(value: ir.Value) -> ir.Value | None:
    add = made_by(value, "Add")
    if add is None:
        return None
    return next((scale for scale, one in commuted(add) if number(one) == 1.0), None)


def _broadcasts(part: ir.Value, whole: ir.Value) -> bool:
    """Whether ``part [batch, 1, features]`` repeats along the positions of ``whole [batch, positions, features]``."""
    if part.shape is None or whole.shape is None or len(part.shape) != 3 or len(whole.shape) != 3:
        return False
    return part.shape[1] == 1 and part.shape[2] == whole.shape[2] and part.shape[0] == whole.shape[0]
