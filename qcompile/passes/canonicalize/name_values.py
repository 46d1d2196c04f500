"""Name values: every operator and every value has a name of its own, over all bodies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir.passes.common as common

from qcompile.ir.graph import distinguish, drop_unused, snapshot, tidy
from qcompile.passes.state import State

__all__ = ["NameValues"]


@dataclass(frozen=True)
class NameValues:
    """Drop what nothing reads, and give the rest names that differ."""

    name: ClassVar[str] = "name-values"

    def apply(self, state: State) -> bool:
        """Rename operators and values."""
        before = snapshot(state.model)
        drop_unused(state.model)
        common.NameFixPass()(state.model)
        distinguish(state.model)
        tidy(state.model)  # outputs that nothing reads lose the names that they were given
        changed = snapshot(state.model) != before
        if changed:
            state.edited()
        return changed
