"""Parts that small networks of many families are built from: norms, attention, feed-forward layers.

Sizes are chosen so that a space is known by its size: a stream of 32, heads of 8, feed-forward layers of 48.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "HEADS", "HEAD", "HIDDEN", "STREAM", "VOCABULARY", "Attention", "FeedForward", "Gated", "PlusOneNorm", "RMSNorm",
    "randomize", "rotary",
]  # fmt: skip

STREAM, HEADS, HEAD, HIDDEN, VOCABULARY = 32, 4, 8, 48, 64


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random, scales of norms near one and no two alike: nothing is foldable by accident."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        near_one = parameter.dim() == 1 and name.endswith(("weight", "scale"))
        wide = parameter.shape[-1] if parameter.dim() > 1 else 10
        parameter.data = 1 + 0.3 * noise if near_one else noise / wide**0.5
    return module.eval()


class RMSNorm(nn.Module):
    """Spelled out, as model code writes it."""

    def __init__(self, size: int = STREAM) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class PlusOneNorm(RMSNorm):
    """The scale is stored without its one."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)) * (1.0 + self.weight)


def rotary(x: Tensor, fraction: float = 1.0) -> Tensor:
    """Rotary embedding of ``[batch, heads, length, head]``, halves as pairs, on a leading fraction of the head."""
    width = int(x.shape[-1] * fraction)
    frequency = 1.0 / 100 ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    angle = torch.arange(x.shape[2], dtype=torch.float32)[:, None] * frequency
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
    turned, rest = x[..., :width], x[..., width:]
    low, high = turned.chunk(2, -1)
    return torch.cat([turned * cos + torch.cat([-high, low], -1) * sin, rest], -1)


class Attention(nn.Module):
    """Attention with the variations of the families.

    Args:
        kv_heads: heads of keys and values; query heads share them.
        rope: the fraction of the head that is turned, none if zero.
        qk_norm: the class of a norm on queries and keys.
        causal: whether a position sees only earlier ones.
        fused: one projection for queries, keys and values.
        layout: how its result is shaped, then cut: ``[3, heads, head]`` ("parts"), ``[heads, 3, head]`` ("heads"), or
            ``[kv_heads, shared + 2, head]`` ("groups"); it is cut and then shaped if empty.
        context: the width of what keys and values are made from, the input itself if ``None``.
    """

    def __init__(
        self, *, kv_heads: int = HEADS, rope: float = 0.0, qk_norm: type[nn.Module] | None = None, causal: bool = True,
        bias: bool = False, fused: bool = False, layout: str = "", context: int | None = None,
        size: int = STREAM,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layout, self.kv_heads, self.rope, self.causal = layout, kv_heads, rope, causal
        self.widths = [HEADS * HEAD, kv_heads * HEAD, kv_heads * HEAD]
        self.qkv = nn.Linear(size, sum(self.widths), bias) if fused else None
        read = [size, context or size, context or size]
        split = [] if fused else [nn.Linear(n, w, bias) for n, w in zip(read, self.widths, strict=True)]
        self.projections = nn.ModuleList(split)
        self.norms = nn.ModuleList([qk_norm(HEAD), qk_norm(HEAD)] if qk_norm else [])
        self.out = nn.Linear(HEADS * HEAD, size, bias)

    def forward(self, x: Tensor, context: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        if self.layout:
            parts = self.cut(self.qkv(x))
        elif self.qkv is not None:
            parts = [part.unflatten(-1, (-1, HEAD)) for part in self.qkv(x).split(self.widths, -1)]
        else:
            values = zip(self.projections, (x, context, context), strict=True)
            parts = [projection(value).unflatten(-1, (-1, HEAD)) for projection, value in values]
        q, k, v = (part.transpose(1, 2) for part in parts)
        if self.norms:
            q, k = self.norms[0](q), self.norms[1](k)
        if self.rope:
            q, k = rotary(q, self.rope), rotary(k, self.rope)
        k, v = (part.repeat_interleave(HEADS // self.kv_heads, 1) for part in (k, v))
        scores = q @ k.transpose(-2, -1) / HEAD**0.5
        if bias is not None:
            scores = scores + bias
        if self.causal:
            scores = scores.masked_fill(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1), -1e9)
        mixed = scores.softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))

    def cut(self, made: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values ``[batch, length, heads, head]`` out of one projection."""
        if self.layout == "parts":
            return made.unflatten(-1, (3, HEADS, HEAD)).unbind(2)
        if self.layout == "heads":
            return made.unflatten(-1, (HEADS, 3, HEAD)).unbind(3)
        groups = made.unflatten(-1, (self.kv_heads, HEADS // self.kv_heads + 2, HEAD))
        return groups[..., :-2, :].flatten(2, 3), groups[..., [-2], :].flatten(2, 3), groups[..., [-1], :].flatten(2, 3)


class FeedForward(nn.Module):
    """Two linear maps around a GELU."""

    def __init__(self, bias: bool = True, size: int = STREAM, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(size, hidden, bias), nn.Linear(hidden, size, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Gated(nn.Module):
    """SwiGLU."""

    def __init__(self, size: int = STREAM, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(size, hidden, False), nn.Linear(size, hidden, False)
        self.down = nn.Linear(hidden, size, False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))
