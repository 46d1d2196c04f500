"""Tokens as a factor and levels of a normal distribution, in standard operators: equal to ``formats.unit_caches``."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.backends.ort.body import Body
from qcompile.formats.unit_caches import UnitCacheFormat

__all__ = ["unit_codes"]


def unit_codes(body: Body, x: ir.Value, fmt: UnitCacheFormat, features: int) -> tuple[ir.Value, ir.Value]:
    """Codes as numbers of ``[batch, heads, length, features]``, and the factor of each token before it is stored."""
    square = body.Mul(_tree_sum(body, body.Mul(x, x), features), body.constant(1 / features))
    length = body.Squeeze(body.Sqrt(square), body.vector(-1))
    empty = body.Equal(length, body.constant(0.0))
    y = body.Div(x, body.column(body.Where(empty, body.constant(1.0), length)))
    above = body.Greater(body.column(y), body.constant(fmt.borders))
    codes = body.reduce("ReduceSum", body.to(above, ir.DataType.INT32))
    if fmt.nearest:
        levels = body.Gather(body.constant(fmt.levels), codes, axis=0)
        met, own = (_tree_sum(body, body.Mul(side, levels), features) for side in (x, levels))
        length = body.Squeeze(body.Div(met, own), body.vector(-1))
    return body.to(codes, ir.DataType.FLOAT), length


def _tree_sum(body: Body, x: ir.Value, size: int) -> ir.Value:
    """Sums along the last axis, which is kept, in the order of ``formats.unit_caches.tree_sum``."""

    def part(start: int, end: int) -> ir.Value:
        return body.Slice(x, body.vector(start), body.vector(end), body.vector(-1))

    while size > 1:
        middle = size // 2
        joined = body.Add(part(0, middle), part(middle, 2 * middle))
        x = body.Concat(joined, part(2 * middle, size), axis=-1) if size % 2 else joined
        size -= middle
    return x
