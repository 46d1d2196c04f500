"""Shared by passes: the graph, what was left alone, and results that later stages read."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from qcompile.analysis.analyze import analyze
from qcompile.analysis.spaces import Analysis
from qcompile.ir.graph import tidy
from qcompile.notes import Declined

__all__ = ["State"]

logger = logging.getLogger(__name__)


@dataclass
class State:
    """The state that passes hand on.

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
            logger.info("left alone: %s: %s: %s", site, what, reason)
