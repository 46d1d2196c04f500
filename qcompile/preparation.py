"""Preparation: the passes that bring a graph into the form on which choices are made, and its analysis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qcompile.analysis.analyze import analyze
from qcompile.analysis.inventory import take_inventory
from qcompile.analysis.value_products import products
from qcompile.checks.equivalence import begin_source
from qcompile.ir.capture import begin_capture
from qcompile.ir.graph import state_outputs
from qcompile.notes import Progress
from qcompile.passes.hooks import Telling
from qcompile.passes.pipelines import preparation
from qcompile.passes.state import State
from qcompile.stages import Captured, Prepared
from qcompile.threads import threads

__all__ = ["prepare"]


def prepare(
    model: Any,
    progress: Progress | None = None,
    *,
    ties: bool = False,
    modules: bool = False,
    parts: bool = True,
    **capture_options: Any,
) -> Prepared:
    """Bring a graph into the form on which choices are made; it stays the same function.

    Args:
        model: a captured model, or anything that ``capture`` takes. If it was captured with data, its source runs on
            them meanwhile.
        ties: whether a head is to share an embedding table that is equal to its weight.
        modules: whether every operator is to stay with the module that it came from.
        parts: whether spaces may be parted by transforms that stay in the graph.
    """
    captured = model if isinstance(model, Captured) else Captured(begin_capture(model, **capture_options))
    if captured.data is None:
        return _prepared(captured, progress, ties, modules, parts)
    with threads(1) as beside:
        observing = beside.submit(begin_source(captured.source, captured.data, captured.seed, captured.device))
        prepared = _prepared(captured, progress, ties, modules, parts)
    if progress is not None:
        progress("running the source", 1, 1)
    return replace(prepared, observed=observing.result())


def _prepared(captured: Captured, progress: Progress | None, ties: bool, modules: bool, parts: bool) -> Prepared:
    source = captured.source
    state = State(source.model.clone(), [*source.declined])
    if source.widened:
        reason = "onnxruntime has no such operators on a CPU: the graph computes in float32, its inputs and outputs too"
        state.decline("*", "computing in bfloat16", reason)
    passes = preparation(captured.keep, ties=ties, modules=modules, parts=parts)
    passes.apply(state, [] if progress is None else [Telling(progress)])
    source.check()
    state_outputs(state.model, source.model)
    analysis = analyze(state.model)
    for site in analysis.infinite:
        state.decline(site.name, "transforming and quantizing its weight", f"'{site.weight.name}' holds infinity")
    weights = take_inventory(source.model, analysis)
    if progress is not None:
        progress("analyzing", 1, 1)
    return Prepared(source, state, analysis, weights, products=products(state.model))
