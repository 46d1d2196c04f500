"""Modernize: bring older operators to the oldest version that functions can be written in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompile.errors import InputError
from qcompile.passes.canonicalize import quiet
from qcompile.passes.state import State

__all__ = ["Modernize"]

#: The oldest operators that functions can be written in: axes of Squeeze and ReduceSum are inputs, Pad's pads too.
_OLDEST = 13


@dataclass(frozen=True)
class Modernize:
    """Bring older operators to version 13; where ONNX's own converter cannot, they stay and lowering refuses them."""

    name: ClassVar[str] = "modernize"

    def apply(self, state: State) -> bool:
        """Rewrites operators, and the version that the graph states."""
        model = state.model
        version = model.opset_imports.get("", _OLDEST)
        if version < 9 and any(node.op_type == "Scan" for node in model.graph.all_nodes()):
            reason = "the graph has a Scan as operators of version 8 had it, with a batch of its own: export to 9"
            raise InputError(reason)
        if version >= _OLDEST:
            return False
        from onnxscript.version_converter import ConvertVersionPass

        with quiet():
            ConvertVersionPass(_OLDEST, fallback=True)(model)
        state.edited()
        return True
