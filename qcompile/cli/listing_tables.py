"""Tables of what there is: targets, recipes, passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from qcompile.cli.frames import table

if TYPE_CHECKING:
    from qcompile.passes.pipeline import Pipeline
    from qcompile.recipes.recipe import Recipe
    from qcompile.targets.target import Target

__all__ = ["passes_tables", "recipes_table", "targets_table"]


def targets_table(found: Iterable[Target]) -> Table:
    """All targets."""
    made = table("targets", "name", "formats", "default", "what it is")
    for target in found:
        name = ", ".join((target.name, *target.aliases))
        formats = "any" if "*" in target.schemes else ", ".join(target.schemes)
        made.add_row(Text(name), Text(formats), Text(target.default), Text(target.summary))
    return made


def recipes_table(found: Iterable[Recipe], targets: Sequence[Target]) -> Table:
    """All recipes by their parts, with the targets that run them as they stand."""
    made = table("recipes", "name", "paper", "transforms", "formats", "rounding", "split", "budget", "targets")
    for recipe in found:
        runs = [target.name for target in targets if recipe.runs_on(target)]
        options = recipe.options
        made.add_row(
            Text(recipe.name), Text(recipe.paper), Text(options.get("transforms", "auto")),
            Text(", ".join(options.get("formats", ())) or "the target's"), Text(options.get("method", "gptq")),
            Text(", ".join(options.get("split", ()))),
            Text(", ".join(f"{unit}={bound:g}" for unit, bound in options.get("budget", {}).items())),
            Text("all" if len(runs) == len(targets) else ", ".join(runs) or "none"),
        )  # fmt: skip
    return made


def passes_tables(found: Mapping[str, type[Any]], pipelines: Mapping[str, Pipeline]) -> list[Table]:
    """All passes with their options, and the order of those that pipelines are made of."""
    passes = table("passes", "name", "options", "what it does")
    for name, step in found.items():
        options = ", ".join(_option(field) for field in dataclasses.fields(step))
        passes.add_row(Text(name), Text(options), Text((step.__doc__ or "").strip().split("\n")[0]))
    ordered = table("pipelines", "name", "its passes, in order")
    for name, pipeline in pipelines.items():
        ordered.add_row(Text(name), Text(", ".join(step.name for step in pipeline.passes)))
    return [passes, ordered]


def _option(field: dataclasses.Field[Any]) -> str:
    """An option with its default, where that is a number or a word."""
    return f"{field.name}={field.default}" if isinstance(field.default, int | float | str) else field.name
