"""Center norms: LayerNorm becomes RMSNorm where all that writes its input can be centered.

A stream that is written by sites and constants, and read by nothing but LayerNorms, may lose its mean at its writers:
then no norm has to subtract it (Pre-RMSNorm, arXiv:2305.14858), and the stream gains every rotation as its freedom.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.analysis.axes import AxisNode, Mode, Structure
from qcompile.analysis.folding import rewrite
from qcompile.analysis.spaces import Analysis, Norm
from qcompile.ir.functions import DOMAIN
from qcompile.ir.graph import append_node, label
from qcompile.ir.norms import make_norm
from qcompile.ir.required import constant, graph_of, operand
from qcompile.passes.state import State

__all__ = ["CenterNorms"]

#: For every leaf, the (value, axis) pairs that contain it.
Uses = Mapping[AxisNode, Sequence[tuple[ir.Value, int]]]


@dataclass(frozen=True)
class CenterNorms:
    """Turn LayerNorms into RMSNorms by centering what they read."""

    name: ClassVar[str] = "center-norms"

    def apply(self, state: State) -> bool:
        """Rewrite the graph in place; its function stays the same."""
        some = any("LayerNorm" in node.op_type for node in state.model.graph.all_nodes())
        converted = _center(state) if some else 0
        if converted:
            state.edited()
        return bool(converted)


def _center(state: State) -> int:
    """Turn LayerNorms into RMSNorms where all that writes their input can be centered."""
    analysis = state.analyze_apart()
    uses = analysis.uses()
    groups: dict[AxisNode, list[Norm]] = defaultdict(list)
    for norm in analysis.norms:
        groups[analysis.axes.find(norm.ref_in).node].append(norm)
    converted = 0
    for node, norms in groups.items():
        if not any(norm.centered for norm in norms):
            continue
        reason = _why_not_centered(analysis, node, norms, uses)
        if reason is None:
            _center_writers(analysis, node, uses)
            converted += len([_to_rms(state.model, norm) for norm in norms])
            continue
        for norm in norms:
            state.decline(norm.node.name or label(norm.node), "turning it into RMSNorm by centering its input", reason)
    return converted


def _why_not_centered(analysis: Analysis, node: AxisNode, norms: list[Norm], uses: Uses) -> str | None:
    if node.structure is not Structure.LEAF:
        return "its input axis is split by other operators"
    if not all(norm.centered and norm.node.domain != "com.microsoft" for norm in norms):
        return "another kind of normalization reads the same stream"
    own = {f"{label(norm.node)} normalizes over it" for norm in norms}
    other = sorted(node.reasons - own)
    if other:
        return other[0]
    outputs = {id(norm.node.outputs[0]) for norm in analysis.norms}
    for value, axis in uses[node]:
        if analysis.axes.find(analysis.refs(value)[axis]).node is not node:
            return f"'{value.name}' holds the stream as a part of a larger axis"
        if analysis.relative(analysis.refs(value)[axis], norms[0].ref_in) is not Mode.SAME:
            return f"'{value.name}' reads the stream before it is normalized"
        if id(value) in outputs:
            return f"the stream is written by a normalization, '{value.name}', whose mean is not zero"
        if value.const_value is None and any(item.node.outputs[0] is value for item in analysis.scalings):
            return f"the stream is written by a scaling, '{value.name}', that could not be folded"
    return None


def _center_writers(analysis: Analysis, node: AxisNode, uses: Uses) -> None:
    for value, axis in uses[node]:
        if value.const_value is not None:
            rewrite(analysis.model, value, partial(_centered, axis=axis))


def _centered(array: np.ndarray, axis: int) -> np.ndarray:
    return array - array.mean(axis=axis, keepdims=True)


def _epsilon(node: ir.Node) -> float:
    if node.domain == DOMAIN:
        return float(constant(operand(node, len(node.inputs) - 1)).numpy().reshape(-1)[0])
    return node.attributes.get_float("epsilon", 1e-5)


def _to_rms(model: ir.Model, norm: Norm) -> ir.Node:
    old = norm.node
    epsilon = _epsilon(old)
    made = make_norm(
        model, old, operand(old, 0), operand(old, 1), None, epsilon, centered=False, name=f"{old.name}_rms",
        like=old.outputs[0],
    )  # fmt: skip
    result = made.outputs[0]
    if norm.shift is not None and (norm.shift.const_value is None or norm.shift.const_value.numpy().any()):
        result = append_node(old, "Add", [result, norm.shift], name=f"{old.name}_shift", like=result).outputs[0]
    ir.convenience.replace_all_uses_with(old.outputs[0], result, replace_graph_outputs=True)
    graph_of(old).remove(old, safe=True)
    return made
