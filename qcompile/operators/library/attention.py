"""Attention and rotary embeddings as ONNX defines them. Ships with every artifact; needs nothing but torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, past: tuple[Tensor, Tensor] | None = None,
    heads: tuple[int, int] | None = None, causal: bool = False, scale: float | None = None, softcap: float = 0.0,
) -> Tensor:  # fmt: skip
    """Scaled dot-product attention, see ``attention_with_cache``."""
    return attention_with_cache(
        q, k, v, mask=mask, past=past, heads=heads, causal=causal, scale=scale, softcap=softcap
    )[0]


def attention_with_cache(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, past: tuple[Tensor, Tensor] | None = None,
    heads: tuple[int, int] | None = None, causal: bool = False, scale: float | None = None, softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``softmax(scale · q kᵀ + mask) v`` with the keys and values that it saw.

    Args:
        q: ``[batch, heads, length, width]``, or ``[batch, length, heads · width]`` with ``heads`` given.
        k, v: with as many heads as q, or fewer that groups of queries share.
        mask: added to the scores, or boolean: where to look.
        past: keys and values before ``k`` and ``v``.
        causal: query ``i`` looks at keys up to ``i`` behind the past.
    """
    flat = q.ndim == 3
    if flat:
        assert heads is not None, "flat values come with the numbers of their heads"
        counts = (heads[0], heads[1], heads[1])
        q, k, v = (x.unflatten(-1, (n, -1)).transpose(1, 2) for x, n in zip((q, k, v), counts, strict=True))
    offset = 0
    if past is not None:
        offset = past[0].shape[2]
        k, v = torch.cat([past[0].to(k.dtype), k], 2), torch.cat([past[1].to(v.dtype), v], 2)
    if causal and (mask is not None or offset or softcap):
        allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(offset)
        causal = q.shape[2] == 1 and k.shape[2] == offset + 1 and mask is None and not softcap
        mask = None if causal else _both(allowed, mask)
        causal = False
    if mask is not None and mask.shape[-1] < k.shape[2]:
        low = False if mask.dtype == torch.bool else float("-inf")
        mask = F.pad(mask, (0, k.shape[2] - mask.shape[-1]), value=low)
    if softcap:
        y = _capped(q, k, v, mask, scale, softcap)
    else:
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
    return y.transpose(1, 2).flatten(2) if flat else y, k, v


def _both(allowed: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return allowed
    return allowed & mask if mask.dtype == torch.bool else mask.masked_fill(~allowed, float("-inf"))


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, softcap: float) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    wide = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores, -1, dtype=wide).to(v.dtype) @ v


def rotary(
    x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False, width: int = 0, heads: int = 0,
    positions: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Rotary position embedding of ``x [batch, heads, length, size]``, or ``[batch, length, heads · size]``.

    Args:
        cos, sin: ``[batch, length, width / 2]``, or ``[positions, width / 2]`` with ``positions [batch, length]``.
        interleaved: whether pairs are neighbours; else a pair is one element of each half.
        width: elements of a head that are rotated; all by default.
    """
    if heads:
        y = rotary(x.unflatten(-1, (heads, -1)).transpose(1, 2), cos, sin, interleaved=interleaved, width=width,
                   positions=positions)  # fmt: skip
        return y.transpose(1, 2).flatten(2)
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = cos.unsqueeze(-3), sin.unsqueeze(-3)
    turned, rest = (x, None) if not width or width == x.shape[-1] else (x[..., :width], x[..., width:])
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    parts = a * cos - b * sin, a * sin + b * cos
    y = torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)
    return y if rest is None else torch.cat([y, rest], -1)
