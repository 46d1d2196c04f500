"""Fuse norms: a normalization that an exporter spelled out becomes one operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.errors import InternalError
from qcompile.ir.graph import add_initializer
from qcompile.ir.norms import make_norm
from qcompile.ir.required import constant, rank_of
from qcompile.ir.spelled_norms import find_norm
from qcompile.passes.state import State

__all__ = ["FuseNorms"]


@dataclass(frozen=True)
class FuseNorms:
    """Replace spelled-out normalizations, with their scale, centering and shift, by one operator each."""

    name: ClassVar[str] = "fuse-norms"

    def apply(self, state: State) -> bool:
        """Rewrite norms of the main graph."""
        changed = [node.graph is not None and _fuse(state.model, node) for node in list(state.model.graph)]
        if any(changed):
            state.edited()
        return any(changed)


def _fuse(model: ir.Model, node: ir.Node) -> bool:
    """Replace a norm that the node is the core of by one operator; whether it was one."""
    found = find_norm(node)
    if found is None or not found.x.shape:  # a scalar has no last axis
        return False
    size = found.x.shape[-1]
    if not isinstance(size, int):
        return False
    values = (found.x, found.output, found.scale, found.shift)
    if len(kinds := {value.dtype for value in values if value is not None and value.dtype is not None}) != 1:
        return False  # a cast within: one operator has one type
    scale, shift = (v if v is None else _vector(model, v, size) for v in (found.scale, found.shift))
    if scale is None:
        scale = add_initializer(model, f"{node.name}_scale", np.ones(size, kinds.pop().numpy()))
    last = found.output.producer()
    if last is None:
        raise InternalError(f"no operator makes '{found.output.name}', the result of a norm")
    made = make_norm(
        model, last, found.x, scale, shift, found.epsilon, centered=found.centered,
        name=f"{node.name}_norm", like=found.output,
    )  # fmt: skip
    ir.convenience.replace_all_uses_with(found.output, made.outputs[0], replace_graph_outputs=True)
    return True


def _vector(model: ir.Model, value: ir.Value, size: int) -> ir.Value:
    """A constant without the axes of size one in front."""
    if rank_of(value) == 1:
        return value
    return add_initializer(model, f"{value.name}_flat", constant(value).numpy().reshape(size))
