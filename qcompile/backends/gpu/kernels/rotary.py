"""Rotary position embedding: pairs of one element from each half of a head."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["rotary"]

_ROWS = 4  # rows of heads in one program


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x · cos + (-x₂, x₁) · sin`` (Su et al., RoFormer, 2021), in float32 inside.

    Args:
        x: ``[batch, heads, length, size]``.
        cos, sin: ``[…, length, size]`` with an axis for heads where there is one for the batch, or ``[…, length,
            size / 2]`` where both halves turn by the same angles.

    Returns:
        the shape and dtype of ``x``.
    """
    batch, heads, length, size = x.shape
    half = size // 2
    x = x if x.stride(-1) == 1 else x.contiguous()
    cos, sin = (t.expand(batch, heads, length, t.shape[-1]) for t in (cos, sin))
    y = torch.empty((batch, length, heads, size), dtype=x.dtype, device=x.device).transpose(1, 2)
    rows = batch * heads * length
    if y.numel():
        _rotary_kernel[(triton.cdiv(rows, _ROWS),)](
            x, cos, sin, y, rows, heads, length, *x.stride()[:3], *cos.stride(), *sin.stride(), half,
            cos.shape[-1] - half, SPAN=triton.next_power_of_2(half), ROWS=_ROWS,
        )  # fmt: skip
    return y


@triton.jit
def _rotary_kernel(
    x, cos, sin, y, rows, heads, length, xb, xh, xl, cb, ch, cl, cd, sb, sh, sl, sd, half, second,
    SPAN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, SPAN)[None, :]
    kept = (row < rows) & (column < half)
    h, at = row % heads, row // heads  # heads run fastest, as in y
    position, b = at % length, at // length
    source = x + b.to(tl.int64) * xb + h * xh + position * xl + column
    c = cos + b * cb + h * ch + position * cl + column * cd
    s = sin + b * sb + h * sh + position * sl + column * sd
    first = tl.load(source, kept, 0.0).to(tl.float32)
    other = tl.load(source + half, kept, 0.0).to(tl.float32)
    out = y + row.to(tl.int64) * 2 * half + column
    turned = first * tl.load(c, kept, 0.0).to(tl.float32) - other * tl.load(s, kept, 0.0).to(tl.float32)
    tl.store(out, turned.to(y.dtype.element_ty), kept)
    c2, s2 = tl.load(c + second * cd, kept, 0.0).to(tl.float32), tl.load(s + second * sd, kept, 0.0).to(tl.float32)
    tl.store(out + half, (other * c2 + first * s2).to(y.dtype.element_ty), kept)
