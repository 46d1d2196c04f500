"""A class-conditional diffusion transformer with adaLN-Zero (Peebles and Xie, 2022) for 8x8 digits.

It predicts the velocity of a rectified flow. Every norm is without weights and is followed by a
scale and a shift that depend on the sample: the case where a rotation cannot fold into the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DiT", "Shape"]


@dataclass(frozen=True)
class Shape:
    """Sizes of the shipped model: 2.2 million parameters."""

    image: int = 8
    channels: int = 1
    patch: int = 2
    classes: int = 10
    hidden: int = 192
    layers: int = 4
    heads: int = 6
    intermediate: int = 384
    frequencies: int = 128
    epsilon: float = 1e-6

    @property
    def tokens(self) -> int:
        """Patches in an image."""
        return (self.image // self.patch) ** 2


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN: one shift and one scale per sample, shared by its tokens."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class TimeEmbedding(nn.Module):
    """A time in 0..1 -> [batch, hidden], through sines and cosines of geometric frequencies."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.first = nn.Linear(2 * shape.frequencies, shape.hidden)
        self.second = nn.Linear(shape.hidden, shape.hidden)

    def forward(self, t: Tensor) -> Tensor:
        index = torch.arange(self.shape.frequencies, device=t.device, dtype=torch.float32)
        frequency = torch.exp(-math.log(10000.0) * index / self.shape.frequencies)
        # Times are scaled to the 0..1000 that these frequencies were made for.
        angle = 1000.0 * t[:, None] * frequency[None, :]
        return self.second(F.silu(self.first(torch.cat((angle.cos(), angle.sin()), dim=-1))))


class Attention(nn.Module):
    """Plain multi-head attention with one projection for queries, keys and values."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.hidden, 3 * shape.hidden)
        self.proj = nn.Linear(shape.hidden, shape.hidden)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, hidden = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, hidden // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, hidden))


class Block(nn.Module):
    """Attention and MLP, each modulated before and gated after by the condition."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.hidden, shape.epsilon, elementwise_affine=False)
        self.attention = Attention(shape)
        self.norm2 = nn.LayerNorm(shape.hidden, shape.epsilon, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(shape.hidden, shape.intermediate),
            nn.GELU(approximate="tanh"),
            nn.Linear(shape.intermediate, shape.hidden),
        )
        self.modulation = nn.Linear(shape.hidden, 6 * shape.hidden)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        parts = self.modulation(F.silu(condition)).chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        x = x + gate1.unsqueeze(1) * self.attention(modulate(self.norm1(x), shift1, scale1))
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """Tokens -> the pixels of their patches."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(shape.hidden, shape.epsilon, elementwise_affine=False)
        self.linear = nn.Linear(shape.hidden, shape.patch**2 * shape.channels)
        self.modulation = nn.Linear(shape.hidden, 2 * shape.hidden)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.modulation(F.silu(condition)).chunk(2, dim=-1)
        return self.linear(modulate(self.norm(x), shift, scale))


class DiT(nn.Module):
    """x float32 [batch, 1, 8, 8], t float32 [batch], y int64 [batch] -> velocity, shaped like x.

    y = 10 asks for no digit in particular.
    """

    def __init__(self, shape: Shape | None = None) -> None:
        super().__init__()
        self.shape = shape = shape or Shape()
        self.patches = nn.Conv2d(shape.channels, shape.hidden, shape.patch, stride=shape.patch)
        self.positions = nn.Parameter(torch.randn(1, shape.tokens, shape.hidden) * 0.02)
        self.time = TimeEmbedding(shape)
        self.classes = nn.Embedding(shape.classes + 1, shape.hidden)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.final = FinalLayer(shape)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classes.weight, std=0.02)
        # adaLN-Zero: every block starts as the identity.
        for zero in [*(block.modulation for block in self.blocks), self.final.modulation, self.final.linear]:
            nn.init.zeros_(zero.weight)

    def _unpatch(self, tokens: Tensor) -> Tensor:
        shape, side = self.shape, self.shape.image // self.shape.patch
        pixels = tokens.reshape(-1, side, side, shape.patch, shape.patch, shape.channels)
        return pixels.permute(0, 5, 1, 3, 2, 4).reshape(-1, shape.channels, shape.image, shape.image)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        condition = self.time(t) + self.classes(y)
        for block in self.blocks:
            tokens = block(tokens, condition)
        return self._unpatch(self.final(tokens, condition))
