"""Frames of tables: one with named columns, one of names and facts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

__all__ = ["facts", "module_column", "table"]

#: How every table looks.
TITLED: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "pad_edge": False}


def table(title: str, *columns: str) -> Table:
    """An empty table with those columns."""
    made = Table(title=Text(title), box=box.SIMPLE_HEAD, **TITLED)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def facts(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    """A table of names and what is said of them."""
    made = Table(title=Text(title), box=box.SIMPLE, show_header=False, **TITLED)
    made.add_column(style="dim")
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, Text(value))
    return made


def module_column(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """The column of modules, if any entry has one: graphs of other writers say nothing of them."""
    return ["module"] if any(entry.get("module") for entry in entries) else []
