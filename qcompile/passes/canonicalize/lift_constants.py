"""Lift constants: operators that only hold a number become initializers of the main graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir.passes.common as common

from qcompile.passes.state import State

__all__ = ["LiftConstants"]


@dataclass(frozen=True)
class LiftConstants:
    """Make initializers of Constant operators, also of those in bodies."""

    name: ClassVar[str] = "lift-constants"

    def apply(self, state: State) -> bool:
        """Rewrite Constant operators and the initializers of bodies."""
        model = state.model
        lifted = common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model).modified
        lifted |= common.LiftSubgraphInitializersToMainGraphPass()(model).modified
        if lifted:
            state.edited()
        return lifted
