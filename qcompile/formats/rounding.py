"""Rounding to a codebook: values that are already divided by their scale, to codes and to levels.

Three layouts, three routines (:class:`Kind`), all elementwise, in float32 and exact: the result is the nearest
level for every float32 input, with the tie rule of the layout, saturating at the largest level.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from qcompile.formats.format import Element, Kind

__all__ = ["decode_element", "encode_element", "round_element", "zero_code"]

_EXPONENT = 0x7F800000


def round_element(y: Tensor, element: Element, zero_point: Tensor | None = None) -> Tensor:
    """The nearest level for each value; NaN stays NaN.

    Args:
        y: float32 of any shape. May be overwritten.
        zero_point: for integers, added to the code before saturation (and taken off the result).
    """
    return _ROUND[element.kind](y, element, zero_point)


def encode_element(y: Tensor, element: Element, zero_point: Tensor | None = None) -> Tensor:
    """The uint8 code of the nearest level. NaN gives an unspecified code. ``y`` may be overwritten."""
    return _ENCODE[element.kind](y, element, zero_point)


def decode_element(codes: Tensor, element: Element, zero_point: Tensor | None = None) -> Tensor:
    """The level of each uint8 code, as float32."""
    return _DECODE[element.kind](codes, element, zero_point)


def zero_code(element: Element) -> int:
    """The code of the level closest to zero, which stands in blocks without a scale."""
    index = min(range(len(element.levels)), key=lambda i: abs(element.levels[i]))
    if element.kind is Kind.INTEGER:
        return round(element.levels[index] / element.step)
    return element.codes[index] if element.kind is Kind.TABLE else 0


# ---- integers: divide by the step, round half to even, saturate -------------------------------------------------


def _integer_units(y: Tensor, element: Element, zero_point: Tensor | None) -> Tensor:
    if element.step != 1:
        y = y.mul_(1 / element.step)  # a power of two: exact
    y = y.round_()
    if zero_point is not None:
        y = y.add_(zero_point)
    return y.clamp_(element.levels[0] / element.step, element.max / element.step)


def _integer_round(y: Tensor, element: Element, zero_point: Tensor | None) -> Tensor:
    y = _integer_units(y, element, zero_point)
    y = y.add_(0.0) if zero_point is None else y.sub_(zero_point)  # integers have one zero: -0 + 0 = 0
    return y.mul_(element.step) if element.step != 1 else y


def _integer_encode(y: Tensor, element: Element, zero_point: Tensor | None) -> Tensor:
    units = _integer_units(y, element, zero_point)
    if element.levels[0] >= 0:
        return units.to(torch.uint8)
    codes = units.to(torch.int8).view(torch.uint8)
    return codes if element.bits == 8 else codes.bitwise_and_(2**element.bits - 1)


def _integer_decode(codes: Tensor, element: Element, zero_point: Tensor | None) -> Tensor:
    if element.levels[0] < 0:
        spare = 8 - element.bits
        codes = (codes << spare).view(torch.int8) >> spare  # sign extension
    units = codes.float()
    if zero_point is not None:
        units = units.sub_(zero_point)
    return units.mul_(element.step) if element.step != 1 else units


# ---- floats: add a number so large that its unit in the last place is the quantum wanted -------------------------


def _float_offset(y: Tensor, element: Element) -> tuple[Tensor, Tensor]:
    """``(offset, exponent)``: adding ``offset`` rounds ``y`` to its quantum, ties to even; as int32 bits."""
    exponent = y.view(torch.int32) & _EXPONENT
    exponent = exponent.clamp_(min=(127 + 1 - element.bias) << 23)
    # 1.5 · 2^(e + 23 - m): the half keeps the sum of a negative value within the same binade.
    return exponent + (((23 - element.mantissa_bits) << 23) | 0x400000), exponent


def _float_round(y: Tensor, element: Element, zero_point: Tensor | None) -> Tensor:
    y = y.clamp_(-element.max, element.max)
    offset = _float_offset(y, element)[0].view(torch.float32)
    return torch.add(y, offset).sub_(offset).copysign_(y)


def _float_encode(y: Tensor, element: Element, zero_point: Tensor | None) -> Tensor:
    y = y.clamp_(-element.max, element.max)
    if element.native:
        return y.to(getattr(torch, element.native)).view(torch.uint8)
    mantissa = element.mantissa_bits
    sign = (y.view(torch.int32) >> (32 - element.bits)) & (1 << (element.bits - 1))
    offset, exponent = _float_offset(y.abs_(), element)
    units = (y.add_(offset.view(torch.float32))).view(torch.int32).sub_(offset)
    # ``units`` counts quanta from zero; each binade above the first adds 2^mantissa codes.
    codes = units.add_(exponent >> (23 - mantissa)).sub_((128 - element.bias) << mantissa)
    return codes.bitwise_or_(sign).to(torch.uint8)


def _float_decode(codes: Tensor, element: Element, zero_point: Tensor | None) -> Tensor:
    if element.native:
        return codes.view(getattr(torch, element.native)).float()
    # Through float16, whose five exponent bits hold every exponent here and whose conversion is fast.
    wide = codes.to(torch.int16)
    magnitude = (wide & (2 ** (element.bits - 1) - 1)) << (10 - element.mantissa_bits)
    sign = (wide >> (element.bits - 1)) << 15
    return magnitude.bitwise_or_(sign).view(torch.float16).float().mul_(2.0 ** (15 - element.bias))


# ---- tables: count the midpoints below ---------------------------------------------------------------------------

_COMPARE_LIMIT = 20  # levels up to which comparing with every midpoint beats a binary search


@functools.cache
def _midpoints(element: Element) -> tuple[float, ...]:
    """Midpoints rounded down to float32, so that ``y > midpoint`` is exact and a tie goes to the lower level."""
    levels = [float(torch.tensor(level, dtype=torch.float32)) for level in element.levels]
    return tuple(_float32_down((a + b) / 2) for a, b in zip(levels, levels[1:], strict=False))


@functools.cache
def _levels(element: Element, device: torch.device) -> Tensor:
    """Made once: a copy to a GPU would be waited for."""
    return torch.tensor(element.levels, dtype=torch.float32, device=device)


@functools.cache
def _midpoints_on(element: Element, device: torch.device) -> Tensor:
    return torch.tensor(_midpoints(element), device=device)


def _float32_down(value: float) -> float:
    nearest = torch.tensor(value, dtype=torch.float32)
    if float(nearest) > value:
        nearest = torch.nextafter(nearest, torch.tensor(-math.inf))
    return float(nearest)


def _table_index(y: Tensor, element: Element) -> Tensor:
    midpoints = _midpoints(element)
    if len(midpoints) > _COMPARE_LIMIT:
        return torch.bucketize(y, _midpoints_on(element, y.device), out_int32=True)
    index = torch.zeros(y.shape, dtype=torch.uint8, device=y.device)
    above = torch.empty(y.shape, dtype=torch.bool, device=y.device)
    for midpoint in midpoints:
        index.add_(torch.gt(y, midpoint, out=above).view(torch.uint8))
    return index


def _table_round(y: Tensor, element: Element, zero_point: Tensor | None) -> Tensor:
    return torch.where(y.isnan(), y, _levels(element, y.device)[_table_index(y, element).int()])


def _table_encode(y: Tensor, element: Element, zero_point: Tensor | None) -> Tensor:
    index = _table_index(y, element)
    if element.codes == tuple(range(len(element.levels))):
        return index.to(torch.uint8)
    return torch.tensor(element.codes, dtype=torch.uint8, device=y.device)[index.int()]


def _table_decode(codes: Tensor, element: Element, zero_point: Tensor | None) -> Tensor:
    levels = torch.zeros(2**element.bits, device=codes.device)
    levels[torch.tensor(element.codes, device=codes.device)] = torch.tensor(element.levels, device=codes.device)
    return levels[codes.int()]


_Rounder = Callable[[Tensor, Element, Tensor | None], Tensor]
_ROUND: dict[Kind, _Rounder] = {
    Kind.INTEGER: _integer_round, Kind.FLOAT: _float_round, Kind.TABLE: _table_round,
}  # fmt: skip
_ENCODE: dict[Kind, _Rounder] = {
    Kind.INTEGER: _integer_encode, Kind.FLOAT: _float_encode, Kind.TABLE: _table_encode,
}  # fmt: skip
_DECODE: dict[Kind, _Rounder] = {
    Kind.INTEGER: _integer_decode, Kind.FLOAT: _float_decode, Kind.TABLE: _table_decode,
}  # fmt: skip
