"""Finds passes by name: the file ``fold_scales.py`` holds the pass ``fold-scales``.

A list of them is read from text as ``canonicalize,fold-scales{smallest=0.01}``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import ModuleType
from typing import Any

from qcompile.errors import InputError, unknown
from qcompile.passes.pipeline import Pipeline
from qcompile.passes.pipelines import CANONICALIZE, PREPARE
from qcompile.words import options_given, split_words

__all__ = ["PIPELINES", "all_passes", "load_pass", "options_of", "parse_passes"]

#: The commands that make the arguments of passes which take more than options.
COMMANDS = {
    "quantize": "qcompile export", "rotate": "qcompile rotate", "split-branches": "qcompile export --split",
    "split-columns": "qcompile export --split", "split-features": "qcompile export --split",
}  # fmt: skip

#: Lists of passes that have a name of their own.
PIPELINES = {pipeline.name: pipeline for pipeline in (CANONICALIZE, PREPARE)}


@cache
def all_passes() -> dict[str, type[Any]]:
    """Every pass by its name."""
    package = importlib.import_module("qcompile.passes")
    names = sorted(module.name for module in pkgutil.walk_packages(package.__path__, "qcompile.passes."))
    found = (_pass_of(importlib.import_module(name)) for name in names)
    return dict(sorted((step.name, step) for step in found if step is not None))


def _pass_of(module: ModuleType) -> type[Any] | None:
    """The pass that a module holds: the dataclass that is named after it."""
    name = module.__name__.rpartition(".")[2].replace("_", "-")
    kinds = (value for value in vars(module).values() if isinstance(value, type) and is_dataclass(value))
    own = (kind for kind in kinds if kind.__module__ == module.__name__)
    return next((step for step in own if step is not Pipeline and vars(step).get("name") == name), None)


def load_pass(name: str) -> Any:
    """The pass of that name, to be called with its options; a named pipeline takes none.

    Raises:
        InputError: if there is none.
    """
    if name in PIPELINES:
        return lambda: PIPELINES[name]
    if name not in all_passes():
        raise InputError(unknown("pass", name, [*all_passes(), *PIPELINES]))
    return all_passes()[name]


def options_of(step: type[Any]) -> dict[str, Any]:
    """The options of a pass with their defaults; ``MISSING`` for what has none, because a command makes it."""
    return {field.name: field.default for field in fields(step)}


# -- lists of passes as text -----------------------------------------------------------------------------------------


def parse_passes(text: str) -> Pipeline:
    """The passes of a list such as ``canonicalize,fold-scales{smallest=0.01}``, in order.

    Raises:
        InputError: if one is unknown, takes no such option, or takes more than options.
    """
    words = split_words(text)
    if words is None:
        raise InputError(f"'{text}' is no list of passes, such as canonicalize,fold-scales{{smallest=0.01}}")
    if not words:
        raise InputError(f"the list of passes is empty; there are {', '.join([*all_passes(), *PIPELINES])}")
    return Pipeline(tuple(_step(name, given) for name, given in words))


def _step(name: str, given: Mapping[str, str]) -> Any:
    """One pass with the options that are given."""
    step = load_pass(name)
    known = {} if name in PIPELINES else options_of(step)
    if MISSING in known.values():
        raise InputError(f"pass '{name}' needs more than options: {COMMANDS[name]} runs it")
    return step(**options_given(f"pass '{name}'", known, given))
