"""Modernize: bring older operators to the oldest version that functions can be written in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompile.errors import GraphError
from qcompile.ir.graph import snapshot
from qcompile.ir.text import refusal
from qcompile.passes.canonicalize import quiet
from qcompile.passes.state import State

__all__ = ["Modernize"]

#: The oldest operators that functions can be written in: axes of Squeeze and ReduceSum are inputs, Pad's pads too.
_OLDEST = 13

_OLD_SCAN = "modernize: {op} '{name}' has a batch of its own, as operators of version 8 had it: export to 9"


@dataclass(frozen=True)
class Modernize:
    """Bring older operators to version 13; where ONNX's own converter cannot, they stay and lowering refuses them."""

    name: ClassVar[str] = "modernize"

    def apply(self, state: State) -> bool:
        """Rewrite operators, and the version that the graph states.

        Raises:
            GraphError: if it has an operator that no version since has.
        """
        model = state.model
        version = model.opset_imports.get("", _OLDEST)
        for node in model.graph.all_nodes() if version < 9 else ():
            if node.op_type == "Scan" and not node.domain:
                raise refusal(GraphError, _OLD_SCAN, node)
        if version >= _OLDEST:
            return False
        from onnxscript.version_converter import ConvertVersionPass

        before = snapshot(model)
        with quiet():
            ConvertVersionPass(_OLDEST, fallback=True)(model)
        changed = snapshot(model) != before
        if changed:
            state.edited()
        else:
            reason = "ONNX's own converter lacks a way for one of them"
            state.decline("*", f"bringing operators of version {version} to version {_OLDEST}", reason)
        return changed
