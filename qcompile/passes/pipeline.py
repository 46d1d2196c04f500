"""Passes, the pipeline that runs them, and the hooks that watch them.

A pass is a frozen dataclass with a ``name`` (its file, and its name on the command line), options as fields, and
one ``apply``. It rewrites the graph of a ``State`` in place and leaves it valid; what it decided against, it
declares in ``State.declined``.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import onnx_ir as ir

from qcompile.errors import QCompileError
from qcompile.ir.graph import name_outputs
from qcompile.ir.required import name_of
from qcompile.ir.text import text_around

if TYPE_CHECKING:
    from qcompile.passes.state import State

__all__ = ["Hook", "Pass", "Pipeline", "run_pass"]

logger = logging.getLogger(__name__)


class Pass(Protocol):
    """One step of the pipeline."""

    @property
    def name(self) -> str:
        """Its name on the command line."""

    def apply(self, state: State) -> bool:
        """Rewrite ``state.model``, calling ``state.edited()`` if that changed it; returns whether it did."""


class Hook:
    """Watches passes: progress, timing, printing and verification are hooks."""

    def before(self, step: Pass, state: State) -> None:
        """Called in front of every pass."""

    def after(self, step: Pass, state: State, changed: bool) -> None:
        """Called behind every pass, with whether it changed the graph."""


@dataclass(frozen=True)
class Pipeline:
    """Passes in order; a pass itself."""

    passes: Sequence[Pass]
    name: str = "pipeline"

    def apply(self, state: State, hooks: Sequence[Hook] = ()) -> bool:
        """Run every pass; returns whether any changed the graph. Its outputs keep their names."""
        names = [name_of(value) for value in state.model.graph.outputs]
        changed = [run_pass(step, state, hooks) for step in self.passes]
        name_outputs(state.model, names)
        return any(changed)

    def steps(self) -> Iterator[Pass]:
        """The passes, those of pipelines among them one by one."""
        for step in self.passes:
            yield from step.steps() if isinstance(step, Pipeline) else [step]


def run_pass(step: Pass, state: State, hooks: Sequence[Hook] = ()) -> bool:
    """Apply a pass under hooks. An error of ours gets a note that names the pass, and the node that it was at."""
    if isinstance(step, Pipeline):
        return step.apply(state, hooks)
    for hook in hooks:
        hook.before(step, state)
    start = time.perf_counter()
    try:
        changed = step.apply(state)
    except QCompileError:  # says itself what is wrong
        raise
    except Exception as error:
        node = _node_at(error)
        where = "" if node is None else f", which was at this node:\n{text_around(node)}"
        error.add_note(f"in pass '{step.name}'{where}")
        raise
    said = "changed the graph" if changed else "changed nothing"
    logger.info("pass %s %s, %.3f s", step.name, said, time.perf_counter() - start)
    for hook in hooks:
        hook.after(step, state, changed)
    return changed


def _node_at(error: Exception) -> ir.Node | None:
    """The node that the innermost function was about: by convention, ``node`` is a graph's node."""
    found = [frame.f_locals.get("node") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((node for node in reversed(found) if isinstance(node, ir.Node)), None)
