"""Modernize: bring older operators to the oldest version that functions can be written in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from qcompile.errors import GraphError
from qcompile.ir.functions import ALLOWZERO, state_one_version
from qcompile.ir.graph import snapshot
from qcompile.ir.text import refusal
from qcompile.passes.canonicalize import quiet
from qcompile.passes.state import State

__all__ = ["Modernize"]

#: The oldest operators that functions can be written in: axes of Squeeze and ReduceSum are inputs, Pad's pads too.
_OLDEST = 13

#: Where operators stand while the others are converted that onnxruntime has in the standard domain, but ONNX has not.
_ASIDE = "qcompile.aside"

_OLD_SCAN = "modernize: {op} '{name}' has a batch of its own, as operators of version 8 had it: export to 9"


@dataclass(frozen=True)
class Modernize:
    """Bring older operators to version 14; where ONNX's own converter cannot, they stay and lowering refuses them."""

    name: ClassVar[str] = "modernize"

    def apply(self, state: State) -> bool:
        """Rewrite operators, and the version that the graph states.

        Raises:
            GraphError: if it has an operator that no version since has.
        """
        model = state.model
        changed = state_one_version(model)
        version = model.opset_imports.get("", ALLOWZERO)
        if version < ALLOWZERO:
            changed |= _bring(model, version)
        if changed:
            state.edited()
        if model.opset_imports.get("", ALLOWZERO) < _OLDEST:
            reason = "ONNX's own converter lacks a way for one of them"
            state.decline("*", f"bringing operators of version {version} to version {ALLOWZERO}", reason)
        return changed


def _bring(model: ir.Model, version: int) -> bool:
    """Bring operators as far as they go; whether that changed anything."""
    before = snapshot(model)
    for node in model.graph.all_nodes() if version < 9 else ():
        if node.op_type == "Scan" and not node.domain:
            raise refusal(GraphError, _OLD_SCAN, node)
    if version < _OLDEST:
        _convert(model)
    if model.opset_imports.get("") == _OLDEST and not any(map(_trains, model.graph.all_nodes())):
        model.opset_imports[""] = ALLOWZERO  # nothing else differs in meaning
        state_one_version(model)
    return snapshot(model) != before


def _convert(model: ir.Model) -> None:
    """Bring operators to version 13, but for those that ONNX does not know."""
    import onnx
    from onnxscript.version_converter import ConvertVersionPass

    for node in model.graph.all_nodes():
        if not node.domain and not onnx.defs.has(node.op_type):
            node.domain = _ASIDE
            model.opset_imports[_ASIDE] = 1
    with quiet():
        ConvertVersionPass(_OLDEST, fallback=True)(model)
    for node in model.graph.all_nodes():
        if node.domain == _ASIDE:
            node.domain = ""
    model.opset_imports.pop(_ASIDE, None)


def _trains(node: ir.Node) -> bool:
    """Whether a norm took its statistics from the batch, which later versions say in another way."""
    return node.op_type == "BatchNormalization" and not node.domain and len(node.outputs) > 1
