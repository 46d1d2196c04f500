"""The table of operators: by domain and name a template, or a function that writes the source of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qcompile.operators import attention, control, elementwise, indexing, matrix, reductions, shaping
from qcompile.operators.call import Call

__all__ = ["STANDARD", "Row", "Table"]

Row = str | Callable[[Call], str | None]
Table = Mapping[tuple[str, str], Row]

_FAMILIES = (attention, control, elementwise, indexing, matrix, reductions, shaping)

#: The operators of the standard.
STANDARD: Table = {("", op): row for family in _FAMILIES for op, row in family.ROWS.items()}
