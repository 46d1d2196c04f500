"""Values as formats hold them, without codes: what predictions and the engine compute with."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from threading import Lock

import torch
from torch import Tensor

from qcompile.formats.format import Format, ScaleRule
from qcompile.formats.quantizer import Dequantizes, Structured, _chunk_scales, _tensor_scale_of, round_to
from qcompile.formats.replay import captured, capturing
from qcompile.formats.rows import Rows
from qcompile.formats.scales import Scales, quotient
from qcompile.formats.static import Activation, Range, range_of, range_within
from qcompile.formats.tensor_scale import default_tensor_scale

__all__ = ["fake_quantize", "fake_quantize_rows"]

#: Values of a tensor on a GPU that are few enough for launches to take longer than the work.
REPLAYED = 1 << 21

#: Held while a captured graph and its tensors are used: threads share them.
_REPLAYING = Lock()


def fake_quantize(
    x: Tensor,
    fmt: Format | Structured[Dequantizes],
    axis: int = -1,
    scales: Scales | None = None,
    tensor_scale: Tensor | float | None = None,
) -> Tensor:
    """``quantize(...).dequantize()`` without the codes: float32 values in the shape of ``x``."""
    if not isinstance(fmt, Format):
        return fmt.quantize(x, axis).dequantize()
    if scales is None and tensor_scale is None and _replays(x, fmt):
        return _replayed(_by_own_scales, x, fmt, axis)
    view = Rows.of(x, fmt, axis)
    tensor_scale = _tensor_scale_of(x, fmt, scales, tensor_scale)
    view.check(scales)
    return _fake_quantized(x, fmt, view, scales, tensor_scale)


def _fake_quantized(x: Tensor, fmt: Format, view: Rows, scales: Scales | None, tensor_scale: Tensor | None) -> Tensor:
    out = torch.empty(view.count, view.width, device=x.device)
    for part, groups in view.chunks():
        local = _chunk_scales(groups, fmt, scales, tensor_scale, part)
        zero_point = None if local.zero_point is None else local.zero_point.unsqueeze(-1)
        rounded = round_to(groups, local.effective.unsqueeze(-1), zero_point, fmt)
        out[part] = rounded.flatten(1)[:, : view.width]
    return out.view(*view.lead, view.size).movedim(-1, view.axis)


def _by_own_scales(x: Tensor, fmt: Format, axis: int) -> Tensor:
    return _fake_quantized(x, fmt, Rows.of(x, fmt, axis), None, default_tensor_scale(x, fmt))


def _by_scales_of_rows(x: Tensor, fmt: Format, axis: int) -> Tensor:
    assert fmt.tensor_scale is not None, "the caller asked"
    target, x = fmt.targets[0] if fmt.targets else fmt.element.max, x.float()
    scale = quotient(x.abs().amax(axis, keepdim=True), target * fmt.tensor_scale)
    scale = torch.where(scale > 0, scale, 1.0)
    x = x / scale
    return _fake_quantized(x, fmt, Rows.of(x, fmt, axis), None, torch.ones((), device=x.device)) * scale


def _replays(x: Tensor, fmt: Format) -> bool:
    """Whether a tensor is rounded by a graph of kernels: a small one on a GPU, in formats that ask it nothing."""
    return x.is_cuda and x.numel() <= REPLAYED and fmt.rule is not ScaleRule.MINMAX and not capturing(x)


def _replayed(work: Callable[[Tensor, Format, int], Tensor], x: Tensor, fmt: Format, axis: int) -> Tensor:
    graph, own, result = _captured(work, tuple(x.shape), x.dtype, fmt, axis, x.device)
    with _REPLAYING:
        own.copy_(x.detach())
        graph.replay()
        return result.clone()


@lru_cache(maxsize=64)
def _captured(
    work: Callable[[Tensor, Format, int], Tensor], shape: tuple[int, ...], dtype: torch.dtype, fmt: Format, axis: int,
    device: torch.device,
) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:  # fmt: skip
    own = torch.ones(shape, dtype=dtype, device=device)
    graph, result = captured(lambda: work(own, fmt, axis), device)
    return graph, own, result


def fake_quantize_rows(x: torch.Tensor, fmt: Activation) -> torch.Tensor:
    """Quantize and dequantize activations ``[rows, features]`` as a runtime does: each row by itself, or in one range.

    A second-level scale is that of its row, so that a token's result does not depend on its neighbours. A static format
    without a range takes one that suits these rows.
    """
    if isinstance(fmt, Range):
        return fmt.round(x)
    if fmt.whole:
        return range_of(x, fmt).round(x)
    if fmt.static:
        return range_within(x, fmt).round(x)
    if fmt.tensor_scale is None:
        return fake_quantize(x, fmt)
    return _replayed(_by_scales_of_rows, x, fmt, -1) if _replays(x, fmt) else _by_scales_of_rows(x, fmt, -1)
