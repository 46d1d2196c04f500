"""Products of float matrices on a CPU, of any sizes, all of which may be dynamic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from qcompile.backends.relax.kernels.lanes import BLOCK, Lanes, argument, kernel
from qcompile.backends.relax.kernels.tiles import Output, multiply_tiles

__all__ = ["Product", "matmul"]

_PANEL = 256  # inputs of a panel
_ROWS = 192  # rows of a job


@dataclass(frozen=True)
class Product:
    """The product that a kernel is compiled for: ``a [batch, m, k]``, ``b [batch, k, n]``, ``c [batch, m, n]``.

    Args:
        k, n: sizes, or ``None`` where dynamic.
        transposed: whether ``b`` is ``[batch, n, k]``.
        a_shared, b_shared: whether that operand has a batch of one.
    """

    k: int | None
    n: int | None
    transposed: bool
    a_shared: bool
    b_shared: bool

    @property
    def name(self) -> str:
        """For the kernel."""
        parts = [f"k{self.k or ''}", f"n{self.n or ''}"]
        parts += [word for word in ("transposed", "a_shared", "b_shared") if getattr(self, word)]
        return "_".join(["matmul", *parts])


def matmul(lanes: Lanes, form: Product) -> tirx.PrimFunc:
    """``(a, b, c)``, float32."""

    def write() -> None:
        batch, m = T.int64(), T.int64()
        k = T.int64() if form.k is None else form.k
        n = T.int64() if form.n is None else form.n
        a = argument("a", (1 if form.a_shared else batch, m, k), "float32")
        b = argument("b", (1 if form.b_shared else batch, *((n, k) if form.transposed else (k, n))), "float32")
        c = argument("c", (batch, m, n), "float32")
        width = 4 if form.n is None else min(4, -(-form.n // BLOCK))
        tile = width * BLOCK
        with lanes.jobs(batch, tirx.ceildiv(m, _ROWS), -(-n // tile) if form.n else tirx.ceildiv(n, tile)) as job:
            _job(lanes, form, (a, b, c), (m, k, n), width, job)

    return kernel(form.name, write)


def _job(
    lanes: Lanes, form: Product, buffers: tuple[tirx.Buffer, ...], sizes: tuple[Any, Any, Any], width: int,
    job: list[tirx.Expr],
) -> None:  # fmt: skip
    """Some rows by some columns, through a buffer unless every column is there."""
    (a, b, c), (m, k, n), (batch, block, column) = buffers, sizes, job
    tile = width * BLOCK
    row, col = T.Bind(block * _ROWS), T.Bind(column * tile)
    count = T.Bind(tirx.min(m - row, _ROWS))
    panel = T.alloc_buffer((_PANEL * tile,), "float32")
    a_at, b_at = (0 if form.a_shared else batch), (0 if form.b_shared else batch)

    whole = form.n is not None and form.n % tile == 0
    part = None if whole else T.alloc_buffer((_ROWS, tile), "float32")
    out = Output(lanes, c, (batch,), row, col, width) if part is None else Output(lanes, part, (), 0, 0, width)
    with T.serial(0, tirx.ceildiv(k, _PANEL)) as chunk:
        first = T.Bind(chunk * _PANEL)
        depth = T.Bind(tirx.min(k - first, _PANEL))
        fill = _fill_transposed if form.transposed else _fill
        fill(lanes, b, b_at, first, depth, col, width, panel, None if whole else n)
        multiply_tiles(
            lanes, count, depth, x=lambda r, i: a[a_at, row + r, first + i], panel=panel, out=out, fresh=chunk == 0
        )
    if part is not None:
        with T.serial(0, count) as r, T.serial(0, tirx.min(n - col, tile)) as j:
            T.buffer_store(c, part[r, j], [batch, row + r, col + j])


def _fill(
    lanes: Lanes, b: tirx.Buffer, at: Any, first: Any, depth: Any, col: Any, width: int, panel: tirx.Buffer, limit: Any
) -> None:
    """Rows of ``b``, with zeros beyond ``limit``."""
    with T.serial(0, depth) as i:
        if limit is None:
            for v in range(width):
                T.buffer_store(panel, b[at, first + i, lanes.at(col + v * BLOCK)], [lanes.at((i * width + v) * BLOCK)])
            return
        with T.serial(0, width * BLOCK) as j:
            value = tirx.if_then_else(col + j < limit, b[at, first + i, col + j], tirx.const(0, "float32"))
            T.buffer_store(panel, value, [i * width * BLOCK + j])


def _fill_transposed(
    lanes: Lanes, b: tirx.Buffer, at: Any, first: Any, depth: Any, col: Any, width: int, panel: tirx.Buffer, limit: Any
) -> None:
    """Columns of ``b``."""
    with T.serial(0, width * BLOCK) as j, T.serial(0, depth) as i:
        value = b[at, col + j, first + i]
        if limit is not None:
            value = tirx.if_then_else(col + j < limit, value, tirx.const(0, "float32"))
        T.buffer_store(panel, value, [i * width * BLOCK + j])
