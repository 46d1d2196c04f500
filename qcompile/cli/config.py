"""The options of an export in a file: TOML, or the manifest of an artifact that was made before."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from qcompile.errors import InputError, unknown

__all__ = ["read_config", "use_config"]

MANIFEST = "manifest.json"

#: Parameters of the command that are no options of an export.
_OTHERS = ("model", "config", "help")


def use_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the options of a file the defaults of the command: those that its line has win."""
    if path is not None and not context.resilient_parsing:
        names = {str(p.name): p.multiple for p in context.command.params if p.name not in _OTHERS}
        context.default_map = read_config(path, names)
    return path


def read_config(path: Path, names: Mapping[str, bool]) -> dict[str, Any]:
    """The options of a file, each as words of the command line.

    Args:
        path: a TOML file, a manifest, or the folder of an artifact.
        names: the options there are, and whether each may be given several times.

    Raises:
        InputError: if it cannot be read, has a key that is no option, or a value of another kind.
    """
    file = path / MANIFEST if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the options in '{file}' cannot be read: {getattr(error, 'strerror', error)}") from error
    found = _of_manifest(file, text) if file.suffix == ".json" else _of_toml(file, text)
    options = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in names:
            raise InputError(f"'{file}': {unknown('option', key, [known.replace('_', '-') for known in names])}")
        options[name] = _words(file, key, value, names[name])
    return options


def _of_toml(file: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"the options in '{file}' are not readable as TOML: {error}") from error


def _of_manifest(file: Path, text: str) -> dict[str, Any]:
    """What an artifact was made by; an option that was not given is none."""
    try:
        manifest = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"the options in '{file}' are not readable as JSON: {error}") from error
    if not isinstance(manifest, dict) or not manifest.keys() >= {"qcompile", "target", "seed", "options"}:
        raise InputError(f"'{file}' is JSON, but not the manifest of an artifact: write options as TOML")
    given = {"target": manifest["target"], "seed": manifest["seed"], **manifest["options"]}
    return {name: value for name, value in given.items() if value not in (None, [], {})}


def _words(file: Path, key: str, value: Any, several: bool) -> Any:
    """A value as the command line has it: tables and lists for what may be given several times."""
    if several and isinstance(value, Mapping):
        value = [f"{name}={item}" for name, item in value.items()]
    items = value if several and isinstance(value, list) else [value]
    if not all(isinstance(item, str | int | float) for item in items):
        kinds = "a table, a list or a single value" if several else "a single value"
        raise InputError(f"'{file}': option '{key}' takes {kinds}")
    if several:
        return [str(item) for item in items]
    return value if isinstance(value, bool) else str(value)
