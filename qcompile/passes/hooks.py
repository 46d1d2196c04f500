"""Hooks that watch passes: they tell of progress, take times, and print graphs."""

from __future__ import annotations

import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompile.ir.text import graph_text
from qcompile.passes.pipeline import Hook, Pass
from qcompile.passes.state import State

if TYPE_CHECKING:
    from qcompile.notes import Progress

__all__ = ["Printing", "Telling", "Timed", "Timing"]


class Telling(Hook):
    """Tells of every pass that it is done.

    Args:
        progress: called with the pass.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def after(self, step: Pass, state: State, changed: bool) -> None:
        """Tell of it."""
        self._progress(step.name, 1, 1)


@dataclass(frozen=True)
class Timed:
    """How long a pass took, whether it changed the graph, and how many nodes that had before and after."""

    name: str
    changed: bool
    seconds: float
    before: int
    after: int


class Timing(Hook):
    """Takes the time of every pass, into ``rows``."""

    def __init__(self) -> None:
        self.rows: list[Timed] = []
        self._began, self._nodes = 0.0, 0

    def before(self, step: Pass, state: State) -> None:
        """Start the clock."""
        self._nodes = len(state.model.graph)
        self._began = time.perf_counter()

    def after(self, step: Pass, state: State, changed: bool) -> None:
        """Stop it."""
        seconds = time.perf_counter() - self._began
        self.rows.append(Timed(step.name, changed, seconds, self._nodes, len(state.model.graph)))


class Printing(Hook):
    """Prints the graph after some passes.

    Args:
        names: of the passes.
        write: what prints.
    """

    def __init__(self, names: Container[str], write: Callable[[str], object] = print) -> None:
        self._names, self._write = names, write

    def after(self, step: Pass, state: State, changed: bool) -> None:
        """Print the graph, under a line that says behind which pass."""
        if step.name in self._names:
            self._write(f"# after {step.name}, which changed {'the graph' if changed else 'nothing'}")
            self._write(graph_text(state.model))
