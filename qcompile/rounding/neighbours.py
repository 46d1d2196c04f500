"""Codes whose products fit 16 bits two at a time, for processors that add them so.

x86 without VNNI multiplies bytes in pairs: ``a₁w₁ + a₂w₂`` of unsigned codes ``a`` and signed codes ``w`` is one
number of 16 bits, and stops at its ends. It never gets there if ``w₁`` and ``w₂``, where they have one sign, are 128
together: 255 · 128 < 2¹⁵. So such a product is exact on every machine, and by the fastest operators of each; weights of
seven bits, which others take for it, have steps twice as large.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qcompile.analysis.patches import is_convolution
from qcompile.analysis.spaces import Site
from qcompile.formats import Format, Kind, Quantized, Scales
from qcompile.formats.rounding import decode_element
from qcompile.ir.required import sizes_of
from qcompile.targets.scheme import Scheme

__all__ = ["Limits", "adds_in_pairs", "brought", "together", "within"]

#: Scales that are tried for a row, from its own to the one with which rounding to nearest stays within the bound.
_TRIED = 9


@dataclass(frozen=True)
class Limits:
    """The bounds of codes, by which neighbours stay within a sum.

    Args:
        together: the bound of two of one sign.
        least, most: of each, in the order of visits, ``[columns, out]``; the second of two learns from the first.
        partners: the visit of each one's neighbour; past the end where it has none.
    """

    together: int
    least: Tensor
    most: Tensor
    partners: list[int]

    @staticmethod
    def of(weight: Tensor, scale: Tensor, order: Tensor, together: int) -> Limits:
        """Bounds of the first of two, so that either gives half of what they have too much."""
        codes = (weight / scale.clamp_min(torch.finfo(scale.dtype).tiny)).T
        places = torch.arange(len(codes), device=weight.device) ^ 1
        other = torch.nn.functional.pad(codes, (0, 0, 0, 1))[places.clamp(max=len(codes))]
        over = ((codes + other).abs() - together).clamp_min(0) * (codes * other > 0)
        most = torch.where(over > 0, (codes.abs() - over / 2).round().clamp(1, together - 1), together - 1.0)[order]
        visits = torch.full((len(codes) + 1,), len(codes), device=weight.device)
        visits[order] = torch.arange(len(codes), device=weight.device)
        return Limits(together, -most, most, visits[places.clamp(max=len(codes))][order].tolist())

    def brought(self, visit: int, column: Tensor, scale: Tensor) -> Tensor:
        """A column within the bounds."""
        return column.clamp(self.least[visit] * scale, self.most[visit] * scale)

    def learn(self, visit: int, rounded: Tensor, scale: Tensor) -> None:
        """Bound the neighbour of a column by what that was rounded to."""
        partner = self.partners[visit]
        if visit < partner < len(self.most):
            codes = (rounded / scale).nan_to_num(0.0).round()
            whole = float(self.together - 1)
            torch.clamp(self.together - codes.clamp_min(0), max=whole, out=self.most[partner])
            torch.clamp(-self.together - codes.clamp_max(0), min=-whole, out=self.least[partner])


def adds_in_pairs(site: Site, scheme: Scheme) -> bool:
    """Whether a site computes sums of products of bytes by pairs of neighbours along its rows.

    Depthwise kernels are multiplied tap by tap, and transposed ones in floats.
    """
    weight = scheme.weight
    if scheme.activation is None or not isinstance(weight, Format) or weight.group is not None:
        return False
    bytes_of_integers = weight.bits == 8 and weight.element.kind is Kind.INTEGER and weight.element.levels[0] < 0
    if not is_convolution(site.node):
        return bytes_of_integers
    out, inner, groups = *sizes_of(site.weight)[:2], site.node.attributes.get_int("group", 1)
    depthwise = inner == 1 and 1 < out == groups
    return bytes_of_integers and site.node.op_type == "Conv" and not depthwise


def together(codes: Tensor) -> Tensor:
    """The largest sum of two neighbours of one sign, by row of ``[rows, columns]``."""
    pairs = _pairs(codes)
    signed = torch.stack([pairs.clamp(min=0), (-pairs).clamp(min=0)]).sum(-1)
    return signed.amax((0, 2))


def within(
    bound: int, weight: Tensor, rounded: Quantized, importance: Tensor | None,
    again: Callable[[Tensor, Scales, int], Quantized],
) -> Quantized:  # fmt: skip
    """A rounded weight none of whose neighbours of one sign are more than the bound together.

    Rows beyond it are rounded again with the scale, from their own on, by which rounding to nearest errs least once
    pairs are brought within the bound.

    Args:
        bound: of two neighbouring codes.
        weight: ``[out, in]``, that was rounded.
        rounded: with one scale a row.
        importance: of each column, ``[in]``.
        again: rounds rows of the weight with given scales, within the bound if it can make up for it.
    """
    width = weight.shape[1]
    beyond = together(_levels(rounded)[:, :width]) > bound
    if not beyond.any():
        return rounded
    rows, scale = weight[beyond].float(), rounded.scales.to(weight.device)[beyond]
    fixed = Scales(scale * _factors(bound, rows, scale, importance))
    made = again(rows, fixed, bound)
    codes = rounded.codes.clone()
    codes[beyond, :width] = _brought(bound, _levels(made)[:, :width]).to(torch.int8).view(torch.uint8).to(codes.device)
    scales = rounded.scales.clone()
    scales[beyond] = fixed.scale.to(scales)
    return replace(rounded, codes=codes, scales=scales)


def brought(bound: int, rounded: Quantized) -> Quantized:
    """A rounded weight ``[out, in]`` whose neighbours were moved, each pair beyond the bound brought to it."""
    width = rounded.shape[-1]
    codes = rounded.codes.clone()
    codes[:, :width] = _brought(bound, _levels(rounded)[:, :width]).to(torch.int8).view(torch.uint8)
    return replace(rounded, codes=codes)


def _factors(bound: int, rows: Tensor, scale: Tensor, importance: Tensor | None) -> Tensor:
    """By how much the scale of each row grows, ``[rows, 1]``."""
    most = (together(rows / scale) / (bound - 1)).clamp(min=1)[:, None]  # two halves may round up to one more
    count = torch.ones(rows.shape[1]) if importance is None else importance
    best, least = most, torch.full_like(most, torch.inf)
    for part in range(_TRIED):
        factor = 1 + (most - 1) * (part / (_TRIED - 1))
        step = scale * factor
        codes = _brought(bound, (rows / step).round().clamp(-127, 127))
        error = (codes * step - rows).square() @ count.to(rows)[:, None]
        best, least = torch.where(error < least, factor, best), torch.minimum(error, least)
    return best


def _brought(bound: int, codes: Tensor) -> Tensor:
    """Codes with pairs beyond the bound brought to it, either taking half."""
    pairs = _pairs(codes)
    over = (pairs.sum(-1).abs() - bound).clamp(min=0) * (pairs[..., 0] * pairs[..., 1] > 0)
    less = torch.stack([(over / 2).floor(), (over / 2).ceil()], -1)
    return (pairs - pairs.sign() * less).flatten(1)[:, : codes.shape[1]]


def _pairs(codes: Tensor) -> Tensor:
    """``[rows, pairs, 2]``; a last column alone has a zero beside it."""
    return torch.nn.functional.pad(codes, (0, codes.shape[1] % 2)).unflatten(1, (-1, 2))


def _levels(rounded: Quantized) -> Tensor:
    return decode_element(rounded.codes, rounded.format.element)
