"""A class-conditional convolutional U-Net with attention (Ho et al., 2020) for 8x8 digits.

It predicts the velocity of a rectified flow, as the diffusion transformer beside it. Group norms, skips that join by
concatenation and a shift by time and class in every block are what is between its convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit import Shape as TimeShape
from dit import TimeEmbedding

__all__ = ["Shape", "UNet"]


@dataclass(frozen=True)
class Shape:
    """Sizes of the shipped model: 0.47 million parameters."""

    channels: int = 1
    classes: int = 10
    outer: int = 32
    inner: int = 64
    hidden: int = 128
    frequencies: int = 32
    heads: int = 2
    groups: int = 8


class Residual(nn.Module):
    """Two normed convolutions, with a shift by the condition between, beside the input or a 1x1 convolution of it."""

    def __init__(self, inner: int, outer: int, shape: Shape) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(shape.groups, inner)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.condition = nn.Linear(shape.hidden, outer)
        self.norm2 = nn.GroupNorm(shape.groups, outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.beside = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """[n, inner, h, w] and the condition [n, hidden] -> [n, outer, h, w]."""
        wide = self.conv1(F.silu(self.norm1(x))) + self.condition(condition)[:, :, None, None]
        return self.beside(x) + self.conv2(F.silu(self.norm2(wide)))


class Attention(nn.Module):
    """Attention of places to places, with 1x1 convolutions for queries, keys, values and output."""

    def __init__(self, channels: int, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm = nn.GroupNorm(shape.groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, h, w] -> the same shape."""
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        query, key, value = qkv.transpose(-1, -2).unbind(1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj(mixed.transpose(-1, -2).reshape(batch, channels, height, width))


class UNet(nn.Module):
    """x float32 [batch, 1, 8, 8], t float32 [batch], y int64 [batch] -> velocity, shaped like x.

    y = 10 asks for no digit in particular.
    """

    def __init__(self, shape: Shape | None = None) -> None:
        super().__init__()
        shape = shape or Shape()
        outer, inner = shape.outer, shape.inner
        self.time = TimeEmbedding(TimeShape(hidden=shape.hidden, frequencies=shape.frequencies))
        self.classes = nn.Embedding(shape.classes + 1, shape.hidden)
        self.stem = nn.Conv2d(shape.channels, outer, 3, padding=1)
        self.down = Residual(outer, outer, shape)
        self.narrower = nn.Conv2d(outer, inner, 3, stride=2, padding=1)
        self.encode = Residual(inner, inner, shape)
        self.attend = Attention(inner, shape)
        self.middle = Residual(inner, inner, shape)
        self.decode = Residual(2 * inner, inner, shape)
        self.attend_again = Attention(inner, shape)
        self.wider = nn.Conv2d(inner, outer, 3, padding=1)
        self.up = Residual(2 * outer, outer, shape)
        self.norm = nn.GroupNorm(shape.groups, outer)
        self.head = nn.Conv2d(outer, shape.channels, 3, padding=1)
        self._initialize()

    def _initialize(self) -> None:
        nn.init.normal_(self.classes.weight, std=0.5)
        # Every block starts as the identity, and the whole at zero.
        blocks = [module for module in self.modules() if isinstance(module, Residual)]
        starts = [*(block.conv2 for block in blocks), self.attend.proj, self.attend_again.proj, self.head]
        for zero in starts:
            nn.init.zeros_(zero.weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        condition = F.silu(self.time(t) + self.classes(y))
        fine = self.down(self.stem(x), condition)
        coarse = self.attend(self.encode(self.narrower(fine), condition))
        middle = self.middle(coarse, condition)
        decoded = self.attend_again(self.decode(torch.cat((middle, coarse), 1), condition))
        wide = self.wider(F.interpolate(decoded, scale_factor=2.0, mode="nearest"))
        return self.head(F.silu(self.norm(self.up(torch.cat((wide, fine), 1), condition))))
