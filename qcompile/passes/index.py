"""Finds passes by name: the file ``fold_scales.py`` holds the pass ``fold-scales``."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import is_dataclass
from functools import cache
from types import ModuleType
from typing import Any

from qcompile.errors import InputError
from qcompile.passes.pipeline import Pipeline
from qcompile.passes.pipelines import CANONICALIZE, PREPARE

__all__ = ["PIPELINES", "all_passes", "load_pass"]

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
    own = (value for value in vars(module).values() if is_dataclass(value) and value.__module__ == module.__name__)
    return next((step for step in own if step is not Pipeline and vars(step).get("name") == name), None)


def load_pass(name: str) -> Any:
    """The pass of that name, to be called with its options; a named pipeline takes none.

    Raises:
        InputError: if there is none.
    """
    if name in PIPELINES:
        return lambda: PIPELINES[name]
    if name not in all_passes():
        raise InputError(f"unknown pass '{name}'; there are {', '.join([*all_passes(), *PIPELINES])}")
    return all_passes()[name]
