"""Rounding to a codebook in standard operators, equal to ``qcompile.formats`` to the bit.

``ONNX`` cannot read the exponent of a number, and ``Where`` is slow in onnxruntime. Both are avoided by an error-free
transformation: with ``q = fl((2^23 + 1) y)``, ``|q - fl((1 - 2^-24) q)|`` is exactly the largest power of two that is
not above ``|y|`` (Rump, Ultimately fast accurate summation, SIAM J. Sci. Comput. 31, 2009, algorithm 3.5). Adding and
subtracting a suitable multiple of it rounds to nearest, ties to even.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from qcompile.backends.ort.body import Body
from qcompile.formats import Element, Kind

__all__ = ["power_of_two", "power_of_two_wide", "round_element", "round_float"]


def power_of_two(body: Body, y: ir.Value) -> ir.Value:
    """The largest power of two not above ``|y|``, for ``|y| < 2^104``; 0 for 0."""
    q = body.Mul(y, body.constant(2.0**23 + 1))
    return body.Abs(body.Sub(q, body.Mul(q, body.constant(1 - 2.0**-24))))


def power_of_two_wide(body: Body, y: ir.Value) -> ir.Value:
    """The same for every finite ``y``; NaN for infinities."""
    large = body.Greater(y, body.constant(2.0**64))
    one = body.constant(1.0)
    small = power_of_two(body, body.Mul(y, body.Where(large, body.constant(2.0**-64), one)))
    return body.Mul(small, body.Where(large, body.constant(2.0**64), one))


def round_float(body: Body, y: ir.Value, mantissa: int, smallest: float) -> ir.Value:
    """Round to ``mantissa`` bits after the leading one, with a fixed quantum below ``smallest``, ties to even."""
    binade = body.Max(power_of_two(body, y), body.constant(smallest))
    offset = body.Mul(binade, body.constant(1.5 * 2.0 ** (23 - mantissa)))
    return body.Sub(body.Add(y, offset), offset)


def round_element(body: Body, y: ir.Value, element: Element, zero_point: ir.Value | None = None) -> ir.Value:
    """The nearest level of each value, which is already divided by its scale."""
    return _ROUND[element.kind](body, y, element, zero_point)


def clip(body: Body, y: ir.Value, low: float, high: float) -> ir.Value:
    """Saturate; NaN stays NaN."""
    return body.Clip(y, body.constant(low), body.constant(high))


def _round_float(body: Body, y: ir.Value, element: Element, _: ir.Value | None) -> ir.Value:
    return round_float(body, clip(body, y, -element.max, element.max), element.mantissa_bits, 2.0 ** (1 - element.bias))


def _round_integer(body: Body, y: ir.Value, element: Element, zero_point: ir.Value | None) -> ir.Value:
    low, high = element.levels[0] / element.step, element.max / element.step
    if element.step != 1:
        y = body.Mul(y, body.constant(1 / element.step))
    y = body.Round(y)
    if zero_point is not None:
        y = body.Sub(clip(body, body.Add(y, zero_point), low, high), zero_point)
    else:
        y = clip(body, y, low, high)
    return body.Mul(y, body.constant(element.step)) if element.step != 1 else y


def _round_table(body: Body, y: ir.Value, element: Element, _: ir.Value | None) -> ir.Value:
    levels = np.array(element.levels, np.float32)
    above = body.Greater(body.column(y), body.constant(midpoints(levels)))
    count = body.reduce("ReduceSum", body.to(above, ir.DataType.INT32))
    return body.Add(body.Gather(body.constant(levels), count), body.Mul(y, body.constant(0.0)))


def midpoints(levels: np.ndarray) -> np.ndarray:
    """Between neighbouring levels, rounded down to float32, so that a tie goes to the lower level."""
    exact = (levels[:-1].astype(np.float64) + levels[1:]) / 2
    nearest = exact.astype(np.float32)
    return np.where(nearest > exact, np.nextafter(nearest, np.float32(-np.inf)), nearest)


_ROUND: dict[Kind, Callable[[Body, ir.Value, Element, ir.Value | None], ir.Value]] = {
    Kind.INTEGER: _round_integer,
    Kind.FLOAT: _round_float,
    Kind.TABLE: _round_table,
}
