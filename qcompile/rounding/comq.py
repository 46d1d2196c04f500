"""Coordinate descent on codes and scales: each code in turn becomes the best one, given all the others.

COMQ (Zhang et al., 2024, arXiv:2403.07134) without a factorization: with ``δ = ŵ - w`` and ``G`` the second moment of
the input, ``δ G δᵀ`` is a parabola in each code. Here all rows visit columns in one order, that of ``√G_jj ‖w_j‖``, so
that a visit is one vector operation; the paper orders each row for itself.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from qcompile.formats import Format, Quantized, Scales, quantize, round_to, search_scales
from qcompile.formats.scales import store_scale
from qcompile.threads import alone

__all__ = ["comq"]

#: Columns whose changes reach the others together.
BLOCK = 128

#: Outputs from which a column is worth a team of threads.
_WIDE = 1 << 15


def comq(
    weight: Tensor, moment: Tensor, fmt: Format, *, sweeps: int = 4, tensor_scale: Tensor | None = None
) -> Quantized:
    """Round a weight ``[out, in]`` so that its outputs stay close; no step raises the error.

    Args:
        moment: ``E[x xᵀ]`` of its input ``[in, in]``, damped as the data demands.
        fmt: a format with groups along ``in``.
        sweeps: times that every code, and then every scale, is visited. It begins with rounding to nearest.
        tensor_scale: second-level scale, for instance one shared by several weights.
    """
    weight, g = weight.float(), moment.to(weight.device, torch.float32)
    scales = search_scales(weight, fmt, weight=g.diagonal(), tensor_scale=tensor_scale)
    rounded = quantize(weight, fmt, scales=scales).dequantize()
    order = (g.diagonal().clamp_min(0).sqrt() * weight.norm(dim=0)).argsort(descending=True, stable=True)
    for _ in range(sweeps):
        rounded = _visit_codes(weight, rounded, g, order, scales, fmt)
        if fmt.rows == 1:
            scales, rounded = _visit_scales(weight, rounded, g, scales, fmt)
    return quantize(rounded, fmt, scales=scales)


def _visit_codes(weight: Tensor, rounded: Tensor, g: Tensor, order: Tensor, scales: Scales, fmt: Format) -> Tensor:
    """Every code once, in that order: the level that is nearest to the bottom of its parabola."""
    g = g[order][:, order]
    exact, off = weight.T[order].contiguous(), (rounded - weight).T[order].contiguous()  # a column is a row here
    slope = g @ off
    groups = (order // (fmt.group or len(order))).tolist()
    steps = scales.effective.T.contiguous()
    zeros = None if scales.zero_point is None else scales.zero_point.T.contiguous()
    pivots = g.diagonal().tolist()
    for start in range(0, len(order), BLOCK):
        stop = min(start + BLOCK, len(order))
        before = off[start:stop].clone()
        with alone() if len(off[0]) < _WIDE else nullcontext():
            for j in range(start, stop):
                if pivots[j] <= 0:  # nothing reads it
                    continue
                zero = None if zeros is None else zeros[groups[j]]
                best = exact[j] + off[j] - slope[j] / pivots[j]
                moved = round_to(best, steps[groups[j]], zero, fmt) - exact[j] - off[j]
                off[j] += moved
                slope[start:stop].addr_(g[start:stop, j], moved)
        change = off[start:stop] - before
        slope[:start].addmm_(g[:start, start:stop], change)
        slope[stop:].addmm_(g[stop:, start:stop], change)
    result = torch.empty_like(exact)
    result[order] = exact + off
    return result.T.contiguous()


def _visit_scales(weight: Tensor, rounded: Tensor, g: Tensor, scales: Scales, fmt: Format) -> tuple[Scales, Tensor]:
    """Every scale once, by least squares over its codes, as it is stored; kept where the error falls."""
    size, stored, rounded = fmt.group or weight.shape[1], scales.scale.clone(), rounded.clone()
    second = torch.ones((), device=stored.device) if scales.tensor_scale is None else scales.tensor_scale
    slope = (rounded - weight) @ g
    for index in range(stored.shape[1]):
        part = slice(index * size, min((index + 1) * size, weight.shape[1]))
        own = stored[:, index] * second
        units = rounded[:, part] / torch.where(own == 0, torch.inf, own)[:, None]
        curve = ((units @ g[part, part]) * units).sum(1)
        lean = (units * slope[:, part]).sum(1)
        wanted = (own - lean / curve.clamp_min(1e-30)) / second
        new = store_scale(wanted, fmt.scale)
        step = (new - stored[:, index]) * second
        better = (2 * step * lean + step.square() * curve < 0) & (new * own > 0) & (curve > 0)
        stored[:, index] = torch.where(better, new, stored[:, index])
        change = torch.where(better, step, 0.0)[:, None] * units
        rounded[:, part] += change
        slope += change @ g[part]
    return replace(scales, scale=stored), rounded
