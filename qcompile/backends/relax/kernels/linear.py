"""``y = x Wᵀ`` for a packed weight: float activations, float32 sums.

One row is multiplied while its weight is decoded, in registers. For more rows a CPU decodes a panel of 256 inputs into
the cache once and multiplies tiles of rows with it; a GPU decodes for four rows at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from qcompile.backends.relax.kernels.codes import SCALE_DTYPES, decode_scale, level
from qcompile.backends.relax.kernels.lanes import BLOCK, Lanes, argument, kernel
from qcompile.backends.relax.kernels.tiles import Output, multiply_tiles
from qcompile.backends.relax.weights import Layout
from qcompile.formats import Kind

__all__ = ["PackedWeight", "linear"]

_PANEL = 256  # inputs of a decoded panel: with 64 outputs 64 KiB, which the second-level cache holds
_UNROLLED = 4  # words; a table without an instruction for it is long code already
_GPU_ROWS = 4


@dataclass(frozen=True)
class PackedWeight:
    """A weight as arguments of a kernel."""

    layout: Layout
    codes: tirx.Buffer
    scales: tirx.Buffer
    zero_points: tirx.Buffer | None
    tensor_scale: tirx.Buffer | None

    @staticmethod
    def arguments(layout: Layout) -> PackedWeight:
        """The next parameters of the function."""
        blocks, fmt = layout.padded_rows // BLOCK, layout.format
        codes = argument("codes", (blocks, layout.words * BLOCK), "int32")
        scales = argument("scales", (blocks, layout.groups * BLOCK), SCALE_DTYPES[fmt.scale])
        zero_points = argument("zero_points", (blocks, layout.groups * BLOCK), "uint8") if fmt.zero_point else None
        tensor_scale = argument("tensor_scale", (1,), "float32") if layout.scaled_twice else None
        return PackedWeight(layout, codes, scales, zero_points, tensor_scale)

    def word(self, lanes: Lanes, block: Any, lane: Any, index: Any) -> tirx.Expr:
        """Word ``index`` of the columns from ``lane`` of a block on."""
        return T.Bind(self.codes[block, lanes.at(index * BLOCK + lane)])

    def scale(self, lanes: Lanes, block: Any, lane: Any, group: Any) -> tirx.Expr:
        """The effective scales of a group."""
        raw = self.scales[block, lanes.at(group * BLOCK + lane)]
        value = decode_scale(lanes, raw, self.layout.format.scale)
        if self.tensor_scale is not None:
            value = value * lanes.splat(self.tensor_scale[0])
        return T.Bind(value)

    def zero_point(self, lanes: Lanes, block: Any, lane: Any, group: Any) -> tirx.Expr | None:
        """The zero points of a group in steps of the element."""
        if self.zero_points is None:
            return None
        return T.Bind(lanes.cast(self.zero_points[block, lanes.at(group * BLOCK + lane)], "float32"))

    def level(self, lanes: Lanes, word: tirx.Expr, position: int, zero_point: tirx.Expr | None) -> tirx.Expr:
        """The codes at one position of words, less the zero point."""
        value = level(lanes, word, position, self.layout.format.element)
        return value if zero_point is None else value - zero_point


def linear(lanes: Lanes, layout: Layout) -> tirx.PrimFunc:
    """``(x [m, padded_size], codes, scales, ..., y [m, padded_rows])``."""

    def write() -> None:
        m = T.int64()
        x = argument("x", (m, layout.padded_size), "float32")
        weight = PackedWeight.arguments(layout)
        y = argument("y", (m, layout.padded_rows), "float32")
        (_write_gpu if lanes.threads else _write_cpu)(lanes, m, x, weight, y)

    return kernel(f"linear_{layout.name}", write)


def _write_gpu(lanes: Lanes, m: tirx.Expr, x: tirx.Buffer, weight: PackedWeight, y: tirx.Buffer) -> None:
    with lanes.jobs(tirx.ceildiv(m, _GPU_ROWS), weight.layout.padded_rows) as (tile, n):
        rows = [tirx.min(tile * _GPU_ROWS + i, m - 1) for i in range(_GPU_ROWS)]
        _direct(lanes, x, weight, y, rows, [(n // BLOCK, n % BLOCK)])


def _write_cpu(lanes: Lanes, m: tirx.Expr, x: tirx.Buffer, weight: PackedWeight, y: tirx.Buffer) -> None:
    vectors = weight.layout.vectors
    with lanes.jobs(weight.layout.padded_rows // (BLOCK * vectors)) as (job,):
        columns = [(job * vectors + v, 0) for v in range(vectors)]
        with T.If(m == 1):
            with T.Then():
                _direct(lanes, x, weight, y, [tirx.const(0, "int64")], columns)
            with T.Else():
                _panels(lanes, m, x, weight, y, columns)


# ---- decoding in registers ---------------------------------------------------------------------------------------

_Columns = Sequence[tuple[Any, Any]]


def _direct(
    lanes: Lanes, x: tirx.Buffer, weight: PackedWeight, y: tirx.Buffer, rows: Sequence[tirx.Expr], columns: _Columns
) -> None:
    """Some rows by some columns. Sums of a group are kept apart from each other, so that no addition waits."""
    layout, width = weight.layout, len(columns)
    apart = max(1, 8 // (width * len(rows)))
    totals = [lanes.local(width) for _ in rows]
    _clear(lanes, totals, width)
    parts = [lanes.local(width * apart) for _ in rows]
    with T.serial(0, layout.groups) as group:
        _clear(lanes, parts, width * apart)
        zeros = [weight.zero_point(lanes, block, lane, group) for block, lane in columns]

        def multiply(index: Any) -> None:
            words = [weight.word(lanes, block, lane, index) for block, lane in columns]
            for e in range(layout.per_word):
                levels = [T.Bind(weight.level(lanes, w, e, z)) for w, z in zip(words, zeros, strict=True)]
                for part, row in zip(parts, rows, strict=True):
                    value = lanes.splat(x[row, index * layout.per_word + e])
                    for v in range(width):
                        at = v * apart + e % apart
                        lanes.store(part, at, lanes.load(part, at) + levels[v] * value)

        unrolled = 1 if layout.format.element.kind is Kind.TABLE and not lanes.permutes else _UNROLLED
        _each_word(group * layout.words_per_group, layout.words_per_group, unrolled, multiply)
        for v, (block, lane) in enumerate(columns):
            scale = weight.scale(lanes, block, lane, group)
            for total, part in zip(totals, parts, strict=True):
                sums = [lanes.load(part, v * apart + i) for i in range(apart)]
                lanes.store(total, v, lanes.load(total, v) + sum(sums[1:], sums[0]) * scale)
    for total, row in zip(totals, rows, strict=True):
        for v, (block, lane) in enumerate(columns):
            T.buffer_store(y, lanes.load(total, v), [row, lanes.at(block * BLOCK + lane)])


def _clear(lanes: Lanes, buffers: Sequence[tirx.Buffer], vectors: int) -> None:
    for buffer in buffers:
        for v in range(vectors):
            lanes.store(buffer, v, lanes.number(0.0))


def _each_word(first: Any, count: int, unrolled: int, do: Any) -> None:
    """``do`` for ``count`` words from ``first`` on, a few at a time."""
    whole, rest = divmod(count, unrolled)
    if whole:
        with T.serial(0, whole) as step:
            for i in range(unrolled):
                do(first + step * unrolled + i)
    for i in range(count - rest, count):
        do(first + i)


# ---- panels ------------------------------------------------------------------------------------------------------


def _panels(
    lanes: Lanes, m: tirx.Expr, x: tirx.Buffer, weight: PackedWeight, y: tirx.Buffer, columns: _Columns
) -> None:
    layout, width = weight.layout, len(columns)
    most = _PANEL // layout.per_word  # words of a panel
    groups = max(1, most // layout.words_per_group)  # that a panel holds
    words = min(most, groups * layout.words_per_group)
    panel = T.alloc_buffer((_PANEL * width * BLOCK,), "float32")
    with T.serial(0, -(-layout.words // words)) as chunk:
        first = chunk * words
        count = T.Bind(tirx.min(words, layout.words - first))
        if layout.words_per_group > most:
            _decode(lanes, weight, columns, panel, 0, first, count, 0)
        else:
            with T.serial(0, count // layout.words_per_group) as g:
                offset = g * layout.words_per_group
                group = chunk * groups + g
                _decode(lanes, weight, columns, panel, offset, first + offset, layout.words_per_group, group)
        multiply_tiles(
            lanes, m, count * layout.per_word,
            x=lambda row, k: x[row, first * layout.per_word + k], panel=panel,
            out=Output(lanes, y, (), 0, columns[0][0] * BLOCK, width), fresh=chunk == 0,
        )  # fmt: skip


def _decode(
    lanes: Lanes, weight: PackedWeight, columns: _Columns, panel: tirx.Buffer, offset: Any, first: Any, count: Any,
    group: Any,
) -> None:  # fmt: skip
    """Words ``first ... first + count`` of one group, to a panel from word ``offset`` on."""
    per, width = weight.layout.per_word, len(columns)
    scales = [weight.scale(lanes, block, lane, group) for block, lane in columns]
    zeros = [weight.zero_point(lanes, block, lane, group) for block, lane in columns]
    with T.serial(0, count) as index:
        for v, (block, lane) in enumerate(columns):
            word = weight.word(lanes, block, lane, first + index)
            for e in range(per):
                value = weight.level(lanes, word, e, zeros[v]) * scales[v]
                T.buffer_store(panel, value, [lanes.at((((offset + index) * per + e) * width + v) * BLOCK)])
