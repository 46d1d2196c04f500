"""What a pass is, and the pipeline that runs passes.

A pass is a frozen dataclass with a ``name`` (its file, and its name on the command line), options as fields, and
one ``apply``. It rewrites the graph of a ``State`` in place and leaves it valid; what it decided against, it
declares in ``State.declined``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from qcompile.ir.graph import name_outputs

if TYPE_CHECKING:
    from qcompile.passes.state import State

__all__ = ["Hook", "Pass", "Pipeline"]


class Pass(Protocol):
    """One step of the pipeline."""

    name: ClassVar[str]

    def apply(self, state: State) -> bool:
        """Rewrite ``state.model``, calling ``state.edited()`` if that changed it; returns whether it did."""


#: Called after every pass with the pass, the state, and whether the pass changed the graph.
Hook = Callable[[Pass, "State", bool], None]


@dataclass(frozen=True)
class Pipeline:
    """Passes in order; a pass itself."""

    passes: Sequence[Pass]
    name: str = "pipeline"

    def apply(self, state: State, hook: Hook | None = None) -> bool:
        """Run every pass; returns whether any changed the graph. Its outputs keep their names."""
        changed = False
        names = [value.name for value in state.model.graph.outputs]
        for step in self.passes:
            if isinstance(step, Pipeline):
                own = step.apply(state, hook)
            else:
                own = step.apply(state)
                if hook is not None:
                    hook(step, state, own)
            changed |= own
        name_outputs(state.model, names)
        return changed
