"""Writes the lists of docs/recipes.md: the parts of recipes, and the recipes that come with the package.

PYTHONPATH=. python docs/list_recipes.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from qcompile.choice.splits import SPLITS
from qcompile.recipes.recipe import Recipe, all_recipes
from qcompile.recipes.recipe_parts import PARTS
from qcompile.rounding.methods import METHODS
from qcompile.statistics.measures import MEASURES
from qcompile.targets.registry import targets

PAGE = Path(__file__).parent / "recipes.md"


def page() -> str:
    """The page as it should be: its text, with lists between marks."""
    text = PAGE.read_text()
    for name, lines in (
        ("parts", _parts()),
        ("methods", _called("method", METHODS)),
        ("splits", _called("split", SPLITS)),
        (
            "sensitivities",
            ["| sensitivity | what it is |", "|---|---|", *(f"| `{w}` | {d} |" for w, d in MEASURES.items())],
        ),
        ("recipes", _recipes()),
    ):
        marks = f"<!-- {name} -->\n", "<!-- end -->"
        text = re.sub(f"(?s){marks[0]}.*?{marks[1]}", lambda _: "\n".join([marks[0], *lines, "", marks[1]]), text)  # noqa: B023
    return text


def _parts() -> list[str]:
    rows = [f"| `{name}` | {part.does} | `{name} = {{ {part.example} }}` |" for name, part in PARTS.items()]
    return ["| part | what it is | example |", "|---|---|---|", *rows]


def _called(what: str, known: Mapping[str, type]) -> list[str]:
    """What a word with options may be, from the docstrings of classes."""
    rows = []
    for name, method in known.items():
        first, _, rest = (method.__doc__ or "").partition("\n")
        options = re.findall(r"(?s)^ {8}(\w+): (.*?)(?=^ {8}\w|\Z)", rest, re.M)
        known = {field.name: field.default for field in fields(method)}
        said = "; ".join(f"`{o}={known[o]}`: {' '.join(text.split()).rstrip('.')}" for o, text in options)
        rows.append(f"| `{name}` | {first.rstrip('.')} | {said} |")
    return [f"| {what} | what it does | options and their defaults |", "|---|---|---|", *rows]


def _recipes() -> list[str]:
    rows = [f"| `{r.name}` | {r.paper} | {_does(r)} | {_words(r)} | {_runs(r)} |" for r in all_recipes().values()]
    return ["| recipe | paper | what it does | options | targets |", "|---|---|---|---|---|", *rows]


def _does(recipe: Recipe) -> str:
    return recipe.does + (f". *Lacks*: {recipe.lacks}" if recipe.lacks else "")


def _words(recipe: Recipe) -> str:
    """The options that it stands for."""
    options = recipe.options
    words = [f"--transforms {options['transforms']}"] if "transforms" in options else []
    words += [f"--formats {','.join(options['formats'])}"] if "formats" in options else []
    words += [f"--method {options['method']}"] if "method" in options else []
    words += [f"--split {word}" for word in options.get("split", ())]
    words += [f"--budget {unit}={bound:g}" for unit, bound in options.get("budget", {}).items()]
    return f"`{' '.join(words)}`"


def _runs(recipe: Recipe) -> str:
    every = {target.name: target for target in targets().values()}
    runs = [name for name, target in every.items() if recipe.runs_on(target)]
    return "all" if len(runs) == len(every) else ", ".join(f"`{name}`" for name in runs)


if __name__ == "__main__":
    PAGE.write_text(page())
