"""Rows of a matrix set, or combined with others, at positions held in a tensor."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from qcompile.backends.relax.kernels.lanes import Lanes, argument, kernel

__all__ = ["COMBINE", "scatter_rows"]

#: By ONNX's name of a reduction: (what stands there, what comes) -> what stands there then.
COMBINE: dict[str, Callable[[tirx.Expr, tirx.Expr], tirx.Expr]] = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "max": tirx.max,
    "min": tirx.min,
}


def scatter_rows(lanes: Lanes, dtype: str, reduction: str) -> tirx.PrimFunc:
    """``(x [p, n], at [m], updates [m, n], y [p, n])``: ``y`` is ``x`` but for its rows ``at``, in their order."""

    def write() -> None:
        rows, count, width = T.int64(), T.int64(), T.int64()
        x, at = argument("x", (rows, width), dtype), argument("at", (count,), "int64")
        updates, y = argument("updates", (count, width), dtype), argument("y", (rows, width), dtype)
        with lanes.jobs(width) as (column,):
            with T.serial(0, rows) as row:
                T.buffer_store(y, x[row, column], [row, column])
            with T.serial(0, count) as i:
                place = T.Bind(at[i])
                value = COMBINE[reduction](y[place, column], updates[i, column])
                T.buffer_store(y, value, [place, column])

    return kernel("scatter_rows", write)
