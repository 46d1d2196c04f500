"""Inline functions: the graph has operators alone, and functions of our own domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir.passes.common as common

from qcompile.ir.functions import DOMAIN
from qcompile.passes.state import State

__all__ = ["InlineFunctions"]


@dataclass(frozen=True)
class InlineFunctions:
    """Replace calls of functions by their bodies, but for ours."""

    name: ClassVar[str] = "inline-functions"

    def apply(self, state: State) -> bool:
        """Rewrite calls."""
        model = state.model
        kept = {key: function for key, function in model.functions.items() if function.domain == DOMAIN}
        if len(kept) == len(model.functions):
            return False
        for key in kept:
            del model.functions[key]
        common.InlinePass()(model)
        model.functions.clear()  # those that nothing calls
        model.functions.update(kept)
        state.edited()
        return True
