"""Small diffusion transformers: what conditions them scales and shifts the stream of each sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from blocks import HEAD, HEADS, HIDDEN, STREAM, Attention, FeedForward, RMSNorm, rotary
from torch import Tensor, nn

__all__ = ["DiT", "MMDiT", "SingleStream"]

#: Features of what conditions a network.
CONDITION = 24


class DiT(nn.Module):
    """One block with adaLN-Zero on 2x2 patches of a 4x4 image, and the modulated last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.positions = nn.Conv2d(1, STREAM, 2, 2), nn.Parameter(torch.zeros(1, 4, STREAM))
        self.attention, self.layer = Attention(bias=True, fused=True, causal=False), FeedForward()
        self.norm = nn.LayerNorm(STREAM, elementwise_affine=False)
        self.modulation = nn.Linear(CONDITION, 6 * STREAM)
        self.last_modulation, self.last = nn.Linear(CONDITION, 2 * STREAM), nn.Linear(STREAM, 24)

    def forward(self, image: Tensor, condition: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2) + self.positions
        condition = F.silu(condition)
        made = self.modulation(condition)[:, None].chunk(6, -1)
        x = x + made[2] * self.attention(self.norm(x) * (1 + made[1]) + made[0])
        x = x + made[5] * self.layer(self.norm(x) * (1 + made[4]) + made[3])
        shift, scale = self.last_modulation(condition)[:, None].chunk(2, -1)
        return self.last(self.norm(x) * (1 + scale) + shift)


class MMDiT(nn.Module):
    """One block of two streams, text and image, with weights of their own and one attention over both."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(STREAM, 3 * STREAM) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(STREAM, STREAM) for _ in range(2))
        self.layers = nn.ModuleList(FeedForward() for _ in range(2))
        self.modulations = nn.ModuleList(nn.Linear(CONDITION, 6 * STREAM) for _ in range(2))
        self.norm = nn.LayerNorm(STREAM, elementwise_affine=False)
        self.enter = nn.ModuleList(nn.Linear(n, STREAM) for n in (24, 16))
        self.leave = nn.Linear(STREAM, 24)

    def forward(self, image: Tensor, text: Tensor, condition: Tensor) -> Tensor:
        streams = [enter(part) for enter, part in zip(self.enter, (image, text), strict=True)]
        condition = F.silu(condition)
        made = [m(condition)[:, None].chunk(6, -1) for m in self.modulations]
        heads = [
            qkv(self.norm(x) * (1 + m[1]) + m[0]).unflatten(-1, (3, HEADS, HEAD)).permute(2, 0, 3, 1, 4)
            for qkv, x, m in zip(self.qkv, streams, made, strict=True)
        ]
        q, k, v = torch.cat(heads, 3)
        mixed = ((q @ k.transpose(-2, -1) / HEAD**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        parts = mixed.split([image.shape[1], text.shape[1]], 1)
        results = []
        for x, part, out, layer, m in zip(streams, parts, self.out, self.layers, made, strict=True):
            x = x + m[2] * out(part)
            results.append(x + m[5] * layer(self.norm(x) * (1 + m[4]) + m[3]))
        return self.leave(results[0]) + results[1].mean(1, keepdim=True)[..., :24]


class SingleStream(nn.Module):
    """One projection in front of attention and feed-forward layer, one behind both; norms on queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(16, STREAM), nn.Linear(STREAM, 24)
        self.modulation, self.norm = nn.Linear(CONDITION, 3 * STREAM), nn.LayerNorm(STREAM, elementwise_affine=False)
        self.first, self.second = nn.Linear(STREAM, 3 * STREAM + HIDDEN), nn.Linear(STREAM + HIDDEN, STREAM)
        self.query_norm, self.key_norm = RMSNorm(HEAD), RMSNorm(HEAD)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        x = self.enter(tokens)
        shift, scale, gate = self.modulation(F.silu(condition))[:, None].chunk(3, -1)
        qkv, hidden = self.first(self.norm(x) * (1 + scale) + shift).split([3 * STREAM, HIDDEN], -1)
        q, k, v = qkv.unflatten(-1, (3, HEADS, HEAD)).permute(2, 0, 3, 1, 4)
        q, k = rotary(self.query_norm(q)), rotary(self.key_norm(k))
        mixed = ((q @ k.transpose(-2, -1) / HEAD**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + gate * self.second(torch.cat([mixed, F.gelu(hidden, approximate="tanh")], -1))
        return self.leave(x)
