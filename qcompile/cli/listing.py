"""The commands that list what there is: inputs of a model, targets, recipes, passes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompile.cli import options
from qcompile.cli.console import say, tell

__all__ = ["inputs", "passes", "recipes", "targets"]


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
    from qcompile.cli.listing_tables import targets_table
    from qcompile.cli.summaries import targets_summary
    from qcompile.targets.registry import targets as known

    found = {target.name: target for target in known().values()}.values()
    tell(json, targets_summary(found), targets_table(found))


def passes() -> None:
    """List the passes and their options, and the pipelines."""
    from qcompile.cli.listing_tables import passes_tables
    from qcompile.passes.index import PIPELINES, all_passes

    say(*passes_tables(all_passes(), PIPELINES))


def recipes(json: options.Json = None) -> None:
    """List the published methods that --recipe takes, their parts, and the targets that run them as they stand."""
    from qcompile.cli.listing_tables import recipes_table
    from qcompile.cli.summaries import recipes_summary
    from qcompile.recipes.recipe import all_recipes
    from qcompile.targets.registry import targets as known

    found, runners = all_recipes().values(), list({target.name: target for target in known().values()}.values())
    tell(json, recipes_summary(found, runners), recipes_table(found, runners))
