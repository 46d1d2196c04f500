"""Reading a transform back from its JSON form."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from qcompile.errors import InputError
from qcompile.transforms.fields import decode_tensor
from qcompile.transforms.transform import Transform

__all__ = ["from_json"]


def from_json(data: Mapping[str, Any]) -> Transform:
    """The transform that ``Transform.to_json`` wrote.

    Raises:
        InputError: if the kind is unknown or a field is missing.
    """
    kind = str(data.get("kind"))
    if kind not in _kinds():
        raise InputError(f"unknown transform kind {kind!r}; known: {', '.join(sorted(_kinds()))}")
    made = _kinds()[kind]
    names = {field.name for field in dataclasses.fields(made)}
    try:
        return made(**{name: _decode(value) for name, value in data.items() if name in names})
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{kind} transform cannot be read: {type(error).__name__}: {error}") from error


@cache
def _kinds() -> Mapping[str, type[Transform]]:
    """Every kind by its name: the modules of the package register theirs when they are imported."""
    package = importlib.import_module("qcompile.transforms")
    for module in pkgutil.iter_modules(package.__path__, "qcompile.transforms."):
        importlib.import_module(module.name)
    return Transform.kinds


def _decode(value: Any) -> Any:
    """A field of a transform from JSON."""
    if isinstance(value, Mapping):
        return from_json(value) if "kind" in value else decode_tensor(value)
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return tuple(map(_decode, value))
    return value
