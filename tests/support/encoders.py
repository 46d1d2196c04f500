"""Small encoders and vision networks of many families."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from blocks import HIDDEN, STREAM, VOCABULARY, Attention, FeedForward, Gated, RMSNorm
from torch import Tensor, nn

__all__ = [
    "ConvNeXt", "EncoderDecoder", "MergedKeys", "PostNormEncoder", "RelativePositions", "TwoTowers", "UNet",
    "VisionTransformer", "Windowed",
]  # fmt: skip


class PostNormEncoder(nn.Module):
    """BERT: each norm, with scale and shift, stands on the stream itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(VOCABULARY, STREAM), nn.Embedding(16, STREAM)
        self.mixers = nn.ModuleList(Attention(bias=True, causal=False) for _ in range(2))
        self.layers = nn.ModuleList(FeedForward() for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(STREAM) for _ in range(5))
        self.head = nn.Linear(STREAM, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norms[4](self.embedding(ids) + self.positions(torch.arange(ids.shape[1])))
        for i, (mixer, layer) in enumerate(zip(self.mixers, self.layers, strict=True)):
            x = self.norms[2 * i](x + mixer(x))
            x = self.norms[2 * i + 1](x + layer(x))
        return self.head(x)


class EncoderDecoder(nn.Module):
    """Pre-norm, one block each; the decoder reads what the encoder's last norm puts out."""

    WIDE = 40  # of the encoder's stream

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(VOCABULARY, self.WIDE), nn.Embedding(VOCABULARY, STREAM)
        self.encode, self.read = Attention(causal=False, size=self.WIDE), Gated(size=self.WIDE)
        self.decode, self.cross, self.write = Attention(), Attention(causal=False, context=self.WIDE), Gated()
        self.encoder_norms = nn.ModuleList(RMSNorm(self.WIDE) for _ in range(3))
        self.norms = nn.ModuleList(RMSNorm() for _ in range(4))
        self.head = nn.Linear(STREAM, VOCABULARY, False)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        x = self.source(source)
        x = x + self.encode(self.encoder_norms[0](x))
        x = x + self.read(self.encoder_norms[1](x))
        context = self.encoder_norms[2](x)
        y = self.target(target)
        y = y + self.decode(self.norms[0](y))
        y = y + self.cross(self.norms[1](y), context)
        y = y + self.write(self.norms[2](y))
        return self.head(self.norms[3](y))


class RelativePositions(nn.Module):
    """An encoder and a decoder of one table, which is the head as well, with a learned bias for each distance."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.bias = nn.Embedding(VOCABULARY, STREAM), nn.Embedding(8, 4)
        self.encode, self.decode = Attention(causal=False), Attention()
        self.cross = Attention(causal=False, context=STREAM)
        self.layers = nn.ModuleList(FeedForward(False) for _ in range(2))
        self.norms = nn.ModuleList(RMSNorm() for _ in range(7))

    def distances(self, length: int) -> Tensor:
        place = torch.arange(length)
        return self.bias((place[:, None] - place).clamp(-4, 3) + 4).permute(2, 0, 1)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        x, y = self.table(source), self.table(target)
        x = x + self.encode(self.norms[0](x), bias=self.distances(source.shape[1]))
        x = x + self.layers[0](self.norms[1](x))
        y = y + self.decode(self.norms[2](y), bias=self.distances(target.shape[1]))
        y = y + self.cross(self.norms[3](y), self.norms[4](x))
        y = y + self.layers[1](self.norms[5](y))
        return F.linear(self.norms[6](y) * STREAM**-0.5, self.table.weight)


class TwoTowers(nn.Module):
    """Text and image, each behind a projection of unit length, compared with each other."""

    WIDE, SHARED = 40, 24

    def __init__(self) -> None:
        super().__init__()
        self.words, self.patches = nn.Embedding(VOCABULARY, STREAM), nn.Conv2d(3, self.WIDE, 2, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, self.WIDE))
        self.mixers = nn.ModuleList([Attention(bias=True), Attention(bias=True, causal=False, size=self.WIDE)])
        self.layers = nn.ModuleList([FeedForward(), FeedForward(size=self.WIDE)])
        self.norms = nn.ModuleList(nn.LayerNorm(n) for n in (STREAM, self.WIDE) for _ in range(3))
        self.leave = nn.ModuleList(nn.Linear(n, self.SHARED, False) for n in (STREAM, self.WIDE))
        self.warmth = nn.Parameter(torch.zeros(()))

    def tower(self, i: int, x: Tensor) -> Tensor:
        x = x + self.mixers[i](self.norms[3 * i](x))
        x = x + self.layers[i](self.norms[3 * i + 1](x))
        return F.normalize(self.leave[i](self.norms[3 * i + 2](x)[:, 0]), dim=-1)

    def forward(self, ids: Tensor, image: Tensor) -> Tensor:
        places = self.patches(image).flatten(2).transpose(1, 2)
        image = torch.cat([self.token.expand(places.shape[0], -1, -1), places], 1)
        return self.warmth.exp() * self.tower(0, self.words(ids)) @ self.tower(1, image).T


class MergedKeys(nn.Module):
    """Keys and values are made of places that a strided convolution of the stream merges, behind a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.merge = nn.Conv2d(3, STREAM, 2, 2), nn.Conv2d(STREAM, STREAM, 2, 2)
        self.mixer, self.layer = Attention(bias=True, causal=False, context=STREAM), FeedForward()
        self.norms, self.head = nn.ModuleList(nn.LayerNorm(STREAM) for _ in range(4)), nn.Linear(STREAM, 3)

    def forward(self, image: Tensor) -> Tensor:
        places = self.patches(image)
        x = places.flatten(2).transpose(1, 2)
        y = self.norms[0](x)
        merged = self.merge(y.transpose(1, 2).unflatten(2, places.shape[2:])).flatten(2).transpose(1, 2)
        x = x + self.mixer(y, self.norms[1](merged))
        x = x + self.layer(self.norms[2](x))
        return self.head(self.norms[3](x).mean(1))


class VisionTransformer(nn.Module):
    """Patches of 2x2, a class token, positions; if asked for, scales on what layers add, or a norm on the stream."""

    def __init__(self, layer_scale: bool = False, normed: bool = False) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, STREAM, 2, 2), nn.Parameter(torch.zeros(1, 1, STREAM))
        self.positions = nn.Parameter(torch.zeros(1, 10, STREAM))
        self.mixer, self.layer = Attention(bias=True, fused=True, causal=False), FeedForward()
        self.norms = nn.ModuleList(nn.LayerNorm(STREAM) for _ in range(3))
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(STREAM)) for _ in range(2 * layer_scale)])
        self.first = nn.LayerNorm(STREAM) if normed else nn.Identity()
        self.head = nn.Linear(STREAM, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = self.first(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions)
        for i, part in enumerate((self.mixer, self.layer)):
            made = part(self.norms[i](x))
            x = x + (self.scales[i] * made if len(self.scales) else made)
        return self.head(self.norms[2](x)[:, 0])


class Windowed(nn.Module):
    """Attention within windows of 2x2 of a 4x4 image, shifted, with a bias for each head and pair of places.

    Then the neighbours are merged: a norm over four places at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.bias = nn.Conv2d(3, STREAM, 2, 2), nn.Parameter(torch.zeros(4, 4, 4))
        self.mixer, self.layer = Attention(bias=True, causal=False), FeedForward()
        self.norms = nn.ModuleList(nn.LayerNorm(n) for n in (STREAM, STREAM, 4 * STREAM))
        self.merge, self.head = nn.Linear(4 * STREAM, 2 * STREAM, False), nn.Linear(2 * STREAM, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).permute(0, 2, 3, 1)
        rolled = self.norms[0](x).roll((-1, -1), (1, 2))
        rows = rolled.unflatten(1, (2, 2)).unflatten(3, (2, 2)).transpose(2, 3).flatten(3, 4).flatten(0, 2)
        made = self.mixer(rows, bias=self.bias).unflatten(1, (2, 2)).unflatten(0, (-1, 2, 2))
        made = made.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        x = x + made.roll((1, 1), (1, 2))
        x = x + self.layer(self.norms[1](x))
        merged = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        return self.head(self.merge(self.norms[2](merged)).mean((1, 2)))


class ConvNeXt(nn.Module):
    """A depthwise convolution, then a feed-forward layer on each place."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, STREAM, 2, 2)
        self.depthwise, self.norm = nn.Conv2d(STREAM, STREAM, 3, padding=1, groups=STREAM), nn.LayerNorm(STREAM)
        self.layer, self.scale = FeedForward(), nn.Parameter(torch.ones(STREAM))
        self.last, self.head = nn.LayerNorm(STREAM), nn.Linear(STREAM, 24)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        x = x + (self.scale * self.layer(y)).permute(0, 3, 1, 2)
        return self.head(self.last(x.mean((2, 3))))


class UNet(nn.Module):
    """A residual convolution behind group norms, and a transformer block between two projections."""

    INNER = 64

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, STREAM, 3, padding=1), nn.Conv2d(STREAM, 3, 3, padding=1)
        self.group_norms = nn.ModuleList(nn.GroupNorm(4, STREAM) for _ in range(3))
        self.convolution = nn.Conv2d(STREAM, STREAM, 3, padding=1)
        self.enter, self.leave = nn.Linear(STREAM, self.INNER), nn.Linear(self.INNER, STREAM)
        self.norms = nn.ModuleList(nn.LayerNorm(self.INNER) for _ in range(3))
        self.attention = Attention(causal=False, size=self.INNER)
        self.cross = Attention(causal=False, size=self.INNER, context=24)
        self.wide, self.narrow = nn.Linear(self.INNER, 2 * HIDDEN), nn.Linear(HIDDEN, self.INNER)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        x = self.first(image)
        x = x + self.convolution(F.silu(self.group_norms[0](x)))
        y = self.enter(self.group_norms[1](x).flatten(2).transpose(1, 2))
        y = y + self.attention(self.norms[0](y))
        y = y + self.cross(self.norms[1](y), text)
        value, gate = self.wide(self.norms[2](y)).chunk(2, -1)
        y = y + self.narrow(value * F.gelu(gate))
        x = x + self.leave(y).transpose(1, 2).unflatten(2, image.shape[2:])
        return self.last(F.silu(self.group_norms[2](x)))
