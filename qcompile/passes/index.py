"""Finds passes by name: the file ``passes/fold_scales.py`` holds the pass ``fold-scales``."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from qcompile.errors import InputError

__all__ = ["all_passes", "load_pass"]


@cache
def all_passes() -> dict[str, type[Any]]:
    """Every pass by its name."""
    package = importlib.import_module("qcompile.passes")
    found: dict[str, type[Any]] = {}
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        name = module.name.replace("_", "-")
        content = importlib.import_module(f"qcompile.passes.{module.name}")
        classes = (value for value in vars(content).values() if isinstance(value, type))
        found |= {name: step for step in classes if getattr(step, "name", None) == name}
    return found


def load_pass(name: str) -> type[Any]:
    """The pass of that name.

    Raises:
        InputError: if there is none.
    """
    if name not in all_passes():
        raise InputError(f"unknown pass '{name}'; there are {', '.join(all_passes())}")
    return all_passes()[name]
