"""The inner product of every float matrix on a CPU: tiles of rows times a panel that lies in the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from qcompile.backends.relax.kernels.lanes import BLOCK, Lanes

__all__ = ["Output", "multiply_tiles"]

_ROWS = (6, 2, 1)  # with four vectors a row, 24 of 32 registers hold sums


@dataclass(frozen=True)
class Output:
    """Some columns of a matrix.

    Args:
        y: the tensor.
        lead: its first indices.
        row: the first row.
        column: the first column.
        width: how many vectors of columns there are.
    """

    lanes: Lanes
    y: tirx.Buffer
    lead: tuple[Any, ...]
    row: Any
    column: Any
    width: int

    def at(self, row: Any, v: int) -> list[Any]:
        """The indices of one vector of a row."""
        return [*self.lead, self.row + row, self.lanes.at(self.column + v * BLOCK)]


def multiply_tiles(
    lanes: Lanes, count: Any, size: Any, *, x: Callable[[Any, Any], tirx.Expr], panel: tirx.Buffer,
    out: Output, fresh: tirx.Expr,
) -> None:  # fmt: skip
    """``y[row, columns ...] += Σ_k x(row, k) · panel[k]`` for ``count`` rows.

    Args:
        size: inputs in the panel.
        x: an element of the left matrix.
        fresh: whether ``y`` is set instead of added to.
    """
    done: Any = 0
    for rows in _ROWS:
        tiles = tirx.floordiv(count - done, rows)
        with T.serial(0, tiles) as tile:
            base = done + tile * rows
            _tile(lanes, [base + i for i in range(rows)], size, x, panel, out, fresh)
        done = done + tiles * rows


def _tile(
    lanes: Lanes, rows: list[Any], size: Any, x: Callable[[Any, Any], tirx.Expr], panel: tirx.Buffer, out: Output,
    fresh: tirx.Expr,
) -> None:  # fmt: skip
    width = out.width
    sums = [lanes.local(width) for _ in rows]
    with T.If(fresh):
        with T.Then():
            for total in sums:
                for v in range(width):
                    lanes.store(total, v, lanes.number(0.0))
        with T.Else():
            for total, row in zip(sums, rows, strict=True):
                for v in range(width):
                    lanes.store(total, v, out.y[tuple(out.at(row, v))])
    with T.serial(0, size) as k:
        values = [T.Bind(panel[lanes.at((k * width + v) * BLOCK)]) for v in range(width)]
        for total, row in zip(sums, rows, strict=True):
            factor = T.Bind(lanes.splat(x(row, k)))
            for v in range(width):
                lanes.store(total, v, lanes.load(total, v) + factor * values[v])
    for total, row in zip(sums, rows, strict=True):
        for v in range(width):
            T.buffer_store(out.y, lanes.load(total, v), out.at(row, v))
