"""The table of operators: by domain and name a template, or a function that writes the source of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qcompile.operators import attention, control, elementwise, fused, indexing, matrix, reductions, shaping
from qcompile.operators.call import Call

__all__ = ["STANDARD", "Row", "Table"]

Row = str | Callable[[Call], str | None]
Table = Mapping[tuple[str, str], Row]

_FAMILIES = (attention, control, elementwise, indexing, matrix, reductions, shaping)

#: The operators of the standard, and those that onnxruntime makes of them.
STANDARD: Table = {
    **{("", op): row for family in _FAMILIES for op, row in family.ROWS.items()},
    **{("com.microsoft", op): row for op, row in fused.ROWS.items()},
}
