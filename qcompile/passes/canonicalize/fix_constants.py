"""Fix constants: none is an input that a caller might replace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir.passes.common as common

from qcompile.passes.state import State

__all__ = ["FixConstants"]


#: The version of the file format from which on constants need not be inputs.
_APART = 4


@dataclass(frozen=True)
class FixConstants:
    """Take constants from the inputs of the graph."""

    name: ClassVar[str] = "fix-constants"

    def apply(self, state: State) -> bool:
        """Rewrite the list of inputs, and the version of the file where it would ask for them there."""
        model = state.model
        changed = common.RemoveInitializersFromInputsPass()(model).modified
        if model.graph.initializers and (model.ir_version or 0) < _APART:
            model.ir_version, changed = _APART, True
        if changed:
            state.edited()
        return changed
