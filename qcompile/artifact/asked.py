"""The wishes that an artifact was made by, as its manifest states them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.choice.export_options import CACHE_BUDGET, UNITS
from qcompile.recipes.recipe import read_recipe
from qcompile.run.compare import number
from qcompile.run.sources import DataLike

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qcompile.choice.assignment import Assignment
    from qcompile.choice.export_options import Options
    from qcompile.targets.cache_plans import CachePlan

__all__ = ["asked_entries", "budget_entry", "options_entry"]


def asked_entries(options: Options) -> dict[str, Any]:
    """The options of an export, and the recipe that some of them come from."""
    return {"options": options_entry(options), "recipe": _recipe_entry(options)}


def options_entry(options: Options) -> dict[str, Any]:
    """The options of an export under their names; target and seed stand beside them."""
    return {
        "recipe": options.recipe,
        "budget": {unit: number(bound) for unit, bound in sorted(options.budget.items())},
        "formats": list(options.formats),
        "transforms": options.transforms,
        "split": list(options.split),
        "method": options.method,
        "sensitivity": options.sensitivity,
        "cache_format": options.cache_format,
        "form": options.form,
        "learn": options.learn,
        "profile": options.profile,
        "shape": dict(options.shape),
        "calibration": _said_of(options.calibration),
        "evaluation": _said_of(options.evaluation),
        "device": options.device,
        "tvm_target": options.tvm_target,
        "exclude": list(options.exclude),
        "keep": list(options.keep),
        "format_for": dict(options.format_for),
        "transform_for": dict(options.transform_for),
        "tokenizer": _said_of(options.reading.tokenizer),
        "window": options.reading.window,
        "preprocessing": _said_of(options.reading.preprocessing),
    }


def _recipe_entry(options: Options) -> dict[str, Any] | None:
    """The recipe of an export: its parts, and the options that were given in place of what they say."""
    if options.recipe is None:
        return None
    recipe = read_recipe(options.recipe)
    given = [name.replace("_", "-") for name, value in recipe.options.items() if getattr(options, name) != value]
    said = {"name": recipe.name, "paper": recipe.paper, "lacks": recipe.lacks}
    return {**said, "parts": {part: dict(words) for part, words in recipe.parts.items()}, "given": given}


def _said_of(data: DataLike | None) -> str | None:
    """Data as a manifest names it: a path, or that it was no file."""
    return None if data is None else str(data) if isinstance(data, str | Path) else "given in Python"


def budget_entry(
    options: Options, assignment: Assignment | None, caches: Sequence[CachePlan]
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """By unit, the bound, the number that it bounds as it came out, and what is counted."""
    spent = {} if assignment is None else dict(assignment.cost)
    if caches:
        spent[CACHE_BUDGET] = float(sum(plan.bytes_per_token for plan in caches))
    found = sorted((unit, bound) for unit, bound in options.budget.items() if unit in spent)
    return {
        unit: {"bound": number(bound), "spent": number(spent[unit]), "counts": UNITS[unit]} for unit, bound in found
    }
