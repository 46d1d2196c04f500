"""The lowering table: from (domain, operator) to a template, or to a function that writes the source of its call."""

from __future__ import annotations

from collections.abc import Callable

from qcompile.backends.gpu.ops import attention, control, elementwise, indexing, matrix, private, reductions, shaping
from qcompile.backends.gpu.ops.call import Call

__all__ = ["TABLE"]

_STANDARD = (attention, control, elementwise, indexing, matrix, reductions, shaping)

TABLE: dict[tuple[str, str], str | Callable[[Call], str | None]] = {
    **{("", op): row for module in _STANDARD for op, row in module.ROWS.items()},
    **private.ROWS,
}
