"""Every pass on many graphs: it says exactly whether it changed one, and does nothing a second time."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from families import FAMILIES, load, stored
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import grow

from qcompile.passes.pipeline import Hook, Pass, Pipeline
from qcompile.passes.pipelines import PREPARE
from qcompile.passes.state import State

STEPS = tuple(PREPARE.steps())


class Idempotent(Hook):
    """Of two applications of a pass in a row, the second does nothing."""

    def __init__(self) -> None:
        self._last: Pass | None = None

    def after(self, step: Pass, state: State, changed: bool) -> None:
        """Remember the first, check the second."""
        if step is self._last:
            assert not changed, f"'{step.name}' changed the graph a second time"
        self._last = None if step is self._last else step


def twice(steps: tuple[Pass, ...], model: ir.Model) -> None:
    """Apply every pass twice; the fixture of this folder holds each to its contract."""
    Pipeline(tuple(step for step in steps for _ in range(2))).apply(State(model), [Idempotent()])


@pytest.mark.parametrize("name", FAMILIES)
def test_on_families_of_networks(name: str) -> None:
    twice(STEPS, load(stored(name)))


@given(st.integers(0, 9999))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_on_random_graphs(seed: int) -> None:
    graph = grow(seed)
    for step in STEPS:
        twice((step,), graph.model())
    twice(STEPS, graph.model())
