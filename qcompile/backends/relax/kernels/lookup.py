"""Rows of a packed table: only those that are asked for are decoded."""

from __future__ import annotations

from dataclasses import replace

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from qcompile.backends.relax.kernels.lanes import BLOCK, Lanes, argument, kernel
from qcompile.backends.relax.kernels.linear import PackedWeight
from qcompile.backends.relax.weights import Layout

__all__ = ["lookup"]


def lookup(lanes: Lanes, layout: Layout, dtype: str) -> tirx.PrimFunc:
    """``(indices [count], codes, scales, ..., y [count, padded_size])``; a negative index counts from the end.

    Args:
        dtype: of the indices.
    """
    single = replace(lanes, width=1)

    def write() -> None:
        count = T.int64()
        indices = argument("indices", (count,), dtype)
        weight = PackedWeight.arguments(layout)
        y = argument("y", (count, layout.padded_size), "float32")
        with single.jobs(count, layout.groups) as (i, group):
            index = T.Bind(tirx.Cast("int64", indices[i]))
            row = T.Bind(tirx.if_then_else(index < 0, index + layout.rows, index))
            block, lane = row // BLOCK, row % BLOCK
            scale = weight.scale(single, block, lane, group)
            zero = weight.zero_point(single, block, lane, group)
            with T.serial(0, layout.words_per_group) as w:
                at = group * layout.words_per_group + w
                word = weight.word(single, block, lane, at)
                for e in range(layout.per_word):
                    value = weight.level(single, word, e, zero) * scale
                    T.buffer_store(y, value, [i, at * layout.per_word + e])

    return kernel(f"lookup_{layout.name}", write)
