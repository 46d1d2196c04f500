"""Small encoders of sound: their streams begin behind convolutions."""

from __future__ import annotations

import torch.nn.functional as F
from blocks import STREAM, Attention, FeedForward
from torch import Tensor, nn

__all__ = ["AudioEncoder", "ConvolutionalPositions"]


class Blocks(nn.Module):
    """Two pre-norm blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(Attention(bias=True, causal=False) for _ in range(2))
        self.layers = nn.ModuleList(FeedForward() for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(STREAM) for _ in range(5))
        self.head = nn.Linear(STREAM, 5)

    def forward(self, x: Tensor) -> Tensor:
        for i, (mixer, layer) in enumerate(zip(self.mixers, self.layers, strict=True)):
            x = x + mixer(self.norms[2 * i](x))
            x = x + layer(self.norms[2 * i + 1](x))
        return self.head(self.norms[4](x))


class AudioEncoder(nn.Module):
    """Two convolutions along time, each with a GELU, the second with a stride; then positions and blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(6, STREAM, 3, padding=1), nn.Conv1d(STREAM, STREAM, 3, stride=2, padding=1)
        self.positions, self.blocks = nn.Embedding(4, STREAM), Blocks()

    def forward(self, sound: Tensor) -> Tensor:
        x = F.gelu(self.second(F.gelu(self.first(sound)))).transpose(1, 2)
        return self.blocks(x + self.positions.weight)


class ConvolutionalPositions(nn.Module):
    """Positions are a grouped convolution of the stream, added to it behind a GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.blocks = nn.Linear(20, STREAM), Blocks()
        self.convolution = nn.Conv1d(STREAM, STREAM, 5, padding=2, groups=4)

    def forward(self, sound: Tensor) -> Tensor:
        x = self.enter(sound)
        return self.blocks(x + F.gelu(self.convolution(x.transpose(1, 2))).transpose(1, 2))
