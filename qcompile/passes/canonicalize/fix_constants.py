"""Fix constants: none is an input that a caller might replace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir.passes.common as common

from qcompile.passes.state import State

__all__ = ["FixConstants"]


@dataclass(frozen=True)
class FixConstants:
    """Take constants from the inputs of the graph."""

    name: ClassVar[str] = "fix-constants"

    def apply(self, state: State) -> bool:
        """Rewrite the list of inputs."""
        changed = common.RemoveInitializersFromInputsPass()(state.model).modified
        if changed:
            state.edited()
        return changed
