"""The commands that list what there is: inputs of a model, targets, passes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompile.cli import options
from qcompile.cli.console import say, tell

__all__ = ["inputs", "passes", "targets"]


def inputs(
    model: options.Model,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write random arrays to start from.")] = None,
    seed: options.Seed = 0,
    json: options.Json = None,
) -> None:
    """Show the arrays that a model takes: names, types, shapes, and the dimensions that are the same."""
    from qcompile.artifact.entries import value_entries
    from qcompile.cli.tables import inputs_table
    from qcompile.ir.capture import capture
    from qcompile.ir.files import refuse_existing, save_arrays
    from qcompile.run.data import example_inputs
    from qcompile.run.sequences import tensors
    from qcompile.run.sources import input_values

    graph = capture(model).model
    if output is not None:
        refuse_existing(output)
        save_arrays(tensors(example_inputs(graph, seed=seed)), output)
    tell(json, {"inputs": value_entries(input_values(graph))}, inputs_table(graph))


def targets(json: options.Json = None) -> None:
    """List the targets and the formats that they run."""
    from qcompile.cli.summaries import targets_summary
    from qcompile.cli.tables import targets_table
    from qcompile.targets.registry import targets as known

    found = {target.name: target for target in known().values()}.values()
    tell(json, targets_summary(found), targets_table(found))


def passes() -> None:
    """List the passes and their options, and the pipelines."""
    from qcompile.cli.tables import passes_tables
    from qcompile.passes.index import PIPELINES, all_passes

    say(*passes_tables(all_passes(), PIPELINES))
