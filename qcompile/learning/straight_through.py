"""Rounding with gradients: forward the format to the bit, backward as if only the rounding itself were not there.

A group's scale is a function of its largest value, and its rounding errors are proportional to the scale. So the
largest value gets, besides its own gradient, what a smaller scale would change everywhere in its group; without
that, gradients would not tell a flat group from a peaked one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qcompile.formats import fake_quantize, fake_quantize_rows
from qcompile.formats.format import Format, ScaleRule

if TYPE_CHECKING:
    from qcompile.formats.scalar import Scalar

__all__ = ["round_rows", "round_weight"]


def round_rows(x: Tensor, fmt: Format) -> Tensor:
    """Activations ``[rows, features]`` as a runtime rounds them, with gradients."""
    return _apply(x, fmt, rows=True)


def round_weight(weight: Tensor, fmt: Scalar) -> Tensor:
    """A weight ``[out, in]`` rounded to nearest with scales by the format's rule, with gradients."""
    return _apply(weight, fmt, rows=False)


def _apply(x: Tensor, fmt: Scalar, *, rows: bool) -> Tensor:
    result: Tensor = _Rounding.apply(x, fmt, rows)
    return result


class _Rounding(torch.autograd.Function):
    """``q = x + s · r`` with rounding errors ``r`` in units of the scale held fixed, and ``ds/s = d amax/amax``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fmt: Scalar, rows: bool) -> Tensor:
        rounded = fake_quantize_rows(x, fmt) if rows and isinstance(fmt, Format) else fake_quantize(x, fmt)
        rounded = rounded.to(x.dtype)
        ctx.fmt = fmt
        ctx.save_for_backward(x, rounded)
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        x, rounded = ctx.saved_tensors
        fmt = ctx.fmt
        if not isinstance(fmt, Format):
            return gradient, None, None
        group = min(fmt.group or x.shape[-1], x.shape[-1])
        values, error, flow = (_grouped(part, group) for part in (x, rounded - x, gradient))
        felt = (flow * error).sum(-1, keepdim=True)  # by how much the loss grows per relative growth of the scale
        if fmt.rule is ScaleRule.MINMAX:
            (top, at_top), (low, at_low) = values.max(-1, keepdim=True), values.min(-1, keepdim=True)
            share = felt / (top - low).clamp_min(torch.finfo(x.dtype).tiny)
            own = torch.zeros_like(values).scatter_add_(-1, at_top, share).scatter_add_(-1, at_low, -share)
        else:
            top, at_top = values.abs().max(-1, keepdim=True)
            sign = values.gather(-1, at_top).sign()
            own = torch.zeros_like(values).scatter_(-1, at_top, sign * felt / top.clamp_min(1e-30))
        return gradient + own.flatten(-2)[..., : x.shape[-1]], None, None


def _grouped(x: Tensor, group: int) -> Tensor:
    """``[rows, groups, group]``, padded with zeros."""
    short = -x.shape[-1] % group
    return torch.nn.functional.pad(x, (0, short)).unflatten(-1, (-1, group))
