"""The statements of a generated function: drops those whose results nobody reads, and frees what is read no more."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

__all__ = ["Statement", "finish", "needed", "with_releases"]

_NAME = re.compile(r"(?<![\w.\"'])[A-Za-z_]\w*")

#: Values that may pile up before a line frees them: few lines, little memory.
_PILE = 6


@dataclass(frozen=True)
class Statement:
    """Lines of source that compute some variables.

    Args:
        writes: the variables.
        text: one line or several, indented for the body of a function.
        tensors: whether the variables hold memory of the GPU.
        kept: whether it does more than to write its variables.
    """

    writes: tuple[str, ...]
    text: str
    tensors: bool = True
    kept: bool = field(default=False)

    @cached_property
    def reads(self) -> set[str]:
        """Every name in it, its own variables included."""
        return set(_NAME.findall(self.text))


def finish(statements: Sequence[Statement], results: Iterable[str]) -> list[str]:
    """The lines of a function's body, without its ``return``.

    Args:
        results: names that are read after the last statement.
    """
    results = set(results)
    return with_releases(needed(statements, results), results)


def needed(statements: Sequence[Statement], results: set[str]) -> list[Statement]:
    """The statements whose variables are read, or that do more than to write them."""
    wanted, kept = set(results), []
    for statement in reversed(statements):
        if statement.kept or wanted.intersection(statement.writes):
            wanted |= statement.reads
            kept.append(statement)
    return kept[::-1]


def with_releases(statements: Sequence[Statement], results: set[str]) -> list[str]:
    """Lines that free the variables which these statements write, behind the last that reads them."""
    last: dict[str, int] = {}
    for position, statement in enumerate(statements):
        for name in statement.reads:
            last[name] = position
    written = {name for statement in statements if statement.tensors for name in statement.writes}
    dying: dict[int, list[str]] = {}
    for name in sorted(written - results - {"_"}):
        dying.setdefault(last[name], []).append(name)
    lines: list[str] = []
    pile: list[str] = []
    for position, statement in enumerate(statements):
        lines.append(statement.text)
        pile += dying.get(position, [])
        if len(pile) >= _PILE and position + 1 < len(statements):
            lines.append(f"        del {', '.join(pile)}")
            pile = []
    return lines
