"""The recipe: a method of a paper as the parts that it is made of, read from TOML and checked word by word.

``docs/recipes.md`` documents the parts. A recipe names no model and no target; no code looks at its name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from qcompile.choice.splits import split_of
from qcompile.errors import InputError, TargetError, unknown
from qcompile.recipes.recipe_parts import LACKING, PARTS, options_of_part
from qcompile.targets.target import Target

__all__ = ["Recipe", "all_recipes", "read_recipe"]

#: What a recipe says of itself; the first two must be there.
SAID = ("paper", "does", "lacks")

#: The parts that formats are made of.
_FORMATS = ("weights", "acts")


@dataclass(frozen=True)
class Recipe:
    """A method as parts.

    Args:
        name: that of its file.
        paper: where it was published.
        does: what it does, in one line.
        lacks: parts of the paper that it leaves out; empty where there are none.
        parts: words by part, as the file has them.
        options: what they mean, by field of ``Options``.
    """

    name: str
    paper: str
    does: str
    lacks: str = ""
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def on(self, target: Target, given: Mapping[str, Any]) -> dict[str, Any]:
        """Its options, but those that are given in their place; formats of kinds of sites one by one.

        Raises:
            TargetError: if the target cannot run a part that stays.
        """
        stay = {name: value for name, value in self.options.items() if name not in given}
        own, wishes = self.options.get("format_for", {}), given.get("format_for", {})
        by_kind = {pattern: word for pattern, word in own.items() if pattern not in wishes}
        for text in stay.get("formats", ()):
            try:
                target.scheme(text)
            except (TargetError, InputError) as error:
                parts = " and ".join(f"'{part}'" for part in _FORMATS if part in self.parts)
                raise TargetError(f"recipe '{self.name}', part {parts}: {error}; --formats gives others") from error
        beside = [("split", fmt, "--split") for word in stay.get("split", ()) if (fmt := split_of(word).format)]
        beside += [("sites", word, "--format-for") for word in by_kind.values()]
        for part, text, option in beside:
            try:
                target.scheme(text)
            except (TargetError, InputError) as error:
                raise TargetError(f"recipe '{self.name}', part '{part}': {error}; {option} gives another") from error
        if "latency" in stay.get("budget", {}) and target.bandwidth is None:
            reason = f"target '{target.name}' has no estimate of time; --budget gives another"
            raise TargetError(f"recipe '{self.name}', part 'assign': {reason}")
        return {**stay, **given, **({"format_for": {**by_kind, **wishes}} if by_kind else {})}

    def runs_on(self, target: Target) -> bool:
        """Whether a target runs all of its parts."""
        try:
            self.on(target, {})
        except TargetError:
            return False
        return True


@cache
def all_recipes() -> dict[str, Recipe]:
    """The recipes that come with the package, by name."""
    found = sorted(Path(__file__).parent.glob("*.toml"))
    return {path.stem: _read(path) for path in found}


def read_recipe(name: str | Path) -> Recipe:
    """The recipe of a name, or of a file.

    Raises:
        InputError: if there is none, or it has a word that is not known.
    """
    path = Path(name)
    if isinstance(name, Path) or path.suffix == ".toml":
        return _read(path)
    if name not in all_recipes():
        raise InputError(f"{unknown('recipe', name, all_recipes())}; a file's name ends in .toml")
    return all_recipes()[name]


def _read(path: Path) -> Recipe:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the recipe '{path}' cannot be read: {getattr(error, 'strerror', error)}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"the recipe '{path}' is not readable as TOML: {error}") from error
    try:
        return _recipe(path.stem, content)
    except InputError as error:
        raise InputError(f"the recipe '{path}': {error}") from error


def _recipe(name: str, content: Mapping[str, Any]) -> Recipe:
    said = {key: content[key] for key in SAID if key in content}
    for key in SAID:
        if not isinstance(said.get(key, ""), str) or (key != "lacks" and not said.get(key)):
            raise InputError(f"'{key}' must be one line of text")
    parts = {key: value for key, value in content.items() if key not in SAID}
    options: dict[str, Any] = {}
    for part, words in parts.items():
        if part not in PARTS:
            lacking = f"part '{part}' is not there yet" if part in LACKING else unknown("part", part, [*SAID, *PARTS])
            raise InputError(lacking)
        if not isinstance(words, Mapping):
            raise InputError(f"part '{part}' is a table, such as {part} = {{{PARTS[part].example}}}")
        meant = options_of_part(part, words)
        options |= meant | {"split": (*options.get("split", ()), *meant["split"])} if "split" in meant else meant
    if (schemes := _schemes(options.pop("weights", None), options.pop("acts", None))) is not None:
        options["formats"] = schemes
    return Recipe(name, parts=parts, options=options, **said)


def _schemes(weights: Sequence[str] | None, acts: Sequence[str] | None) -> tuple[str, ...] | None:
    """The schemes of formats for weights and for activations: one of the latter for each, or for all of them."""
    if weights is None:
        if acts is not None:
            raise InputError("part 'acts' needs part 'weights': a scheme has a format for its weight")
        return None
    if acts is None:
        return tuple(weights)
    if len(acts) not in (1, len(weights)):
        raise InputError(f"part 'acts' has {len(acts)} formats for the {len(weights)} of part 'weights'")
    every = list(acts) * len(weights) if len(acts) == 1 else acts
    return tuple(f"{weight}/{act}" for weight, act in zip(weights, every, strict=True))
