"""Words with options, such as ``fold-scales{smallest=0.01}``: how command lines and recipes call a pass or a method."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qcompile.errors import InputError

__all__ = ["options_given", "spelled", "split_words"]

_WORD = re.compile(r"\s*([\w+-]+)\s*(?:\{([^{}]*)\})?\s*(?:,|$)")

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def split_words(text: str) -> list[tuple[str, dict[str, str]]] | None:
    """The words of a list with what is given for their options; ``None`` where it is no such list."""
    found, end = [], 0
    while end < len(text):
        match = _WORD.match(text, end)
        if match is None:
            return None
        items = (item.partition("=") for item in re.split(r"[,\s]+", match[2] or "") if item)
        found.append((match[1], {option: value for option, _, value in items}))
        end = match.end()
    return found


def options_given(what: str, known: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Options with what is given for them, each in the type of its default.

    Args:
        what: takes the options, as ``pass 'fold-scales'``.
        known: the options and their defaults.
        given: as text.

    Raises:
        InputError: if there is no such option, or a value is of another type.
    """
    found = {}
    for option, text in given.items():
        if option not in known:
            raise InputError(f"{what} has no option '{option}'; there are {', '.join(known) or 'none'}")
        found[option] = _value(what, option, text, type(known[option]))
    return found


def _value(what: str, option: str, text: str, kind: type) -> Any:
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise InputError(f"option '{option}' of {what} takes {_KINDS[kind]}, which '{text}' is not") from None


def spelled(name: str, options: Mapping[str, Any]) -> str:
    """A word as it is written: ``name{option=value,...}``."""
    items = (f"{option}={_text(value)}" for option, value in options.items())
    return f"{name}{{{','.join(items)}}}" if options else name


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
