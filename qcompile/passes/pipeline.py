"""Passes and the pipeline that runs them.

A pass is a frozen dataclass with a ``name`` (its file, and its name on the command line), options as fields, and
one ``apply``. It rewrites the graph of a ``State`` in place and leaves it valid; what it decided against, it
declares in ``State.declined``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import onnx_ir as ir

from qcompile.ir.graph import name_outputs, tidy
from qcompile.analysis.spaces import Analysis, analyze

__all__ = ["Declined", "Hook", "Pass", "Pipeline", "State"]


@dataclass(frozen=True)
class Declined:
    """Something that was looked at and left alone.

    Args:
        site: the operator or value.
        what: what was not done to it.
        reason: why, in one sentence.
    """

    site: str
    what: str
    reason: str


@dataclass
class State:
    """What passes hand on.

    Args:
        model: the graph, rewritten in place.
        declined: what was left alone, and why.
        notes: results of passes that later stages read, by the name of the pass.
    """

    model: ir.Model
    declined: list[Declined] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    _apart: Analysis | None = field(default=None, repr=False)

    def analyze_apart(self) -> Analysis:
        """The analysis in which each norm's output is a space of its own; kept until the graph is edited."""
        if self._apart is None:
            self._apart = analyze(self.model, join_norms=False)
        return self._apart

    def edited(self) -> None:
        """To be called by a pass that changed the graph: drops what nothing reads any more."""
        tidy(self.model)
        self._apart = None

    def decline(self, site: str, what: str, reason: str) -> None:
        """Record that something was left alone."""
        entry = Declined(site, what, reason)
        if entry not in self.declined:
            self.declined.append(entry)


class Pass(Protocol):
    """One step of the pipeline."""

    name: ClassVar[str]

    def apply(self, state: State) -> bool:
        """Rewrite ``state.model``, calling ``state.edited()`` if that changed it; returns whether it did."""


#: Called after every pass with the pass, the state, and the pass that follows.
Hook = Callable[[Pass, State, Pass | None], None]


@dataclass(frozen=True)
class Pipeline:
    """Passes in order; a pass itself."""

    passes: Sequence[Pass]
    hook: Hook | None = None
    name: ClassVar[str] = "pipeline"

    def apply(self, state: State) -> bool:
        """Run every pass; returns whether any changed the graph. Its outputs keep their names."""
        changed = False
        names = [value.name for value in state.model.graph.outputs]
        for step, following in zip(self.passes, [*self.passes[1:], None], strict=True):
            changed |= step.apply(state)
            if self.hook is not None:
                self.hook(step, state, following)
        name_outputs(state.model, names)
        return changed
