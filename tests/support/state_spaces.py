"""Small state-space networks, and hybrids with attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from blocks import STREAM, VOCABULARY, Attention, FeedForward, Gated, RMSNorm
from torch import Tensor, nn

from qcompile.ir.state_space import selective_scan, state_space_duality

__all__ = ["Hybrid", "Mamba1", "Mamba2", "StateSpaceModel"]


def causal(convolution: nn.Conv1d, x: Tensor) -> Tensor:
    """A depthwise convolution over ``[batch, length, channels]`` that sees no later position."""
    return convolution(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)


class Mamba1(nn.Module):
    """The mixer of Mamba: 64 channels, 16 states, steps through a rank of 4; a loop over time if asked for."""

    CHANNELS, STATE, RANK = 64, 16, 4

    def __init__(self, unrolled: bool = False) -> None:
        super().__init__()
        self.unrolled = unrolled
        self.enter, self.leave = nn.Linear(STREAM, 2 * self.CHANNELS, False), nn.Linear(self.CHANNELS, STREAM, False)
        self.convolution = nn.Conv1d(self.CHANNELS, self.CHANNELS, 4, groups=self.CHANNELS, padding=3)
        self.x_proj = nn.Linear(self.CHANNELS, self.RANK + 2 * self.STATE, False)
        self.dt_proj = nn.Linear(self.RANK, self.CHANNELS)
        self.A_log = nn.Parameter(torch.zeros(self.CHANNELS, self.STATE))
        self.D = nn.Parameter(torch.zeros(self.CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.enter(x).chunk(2, -1)
        u = F.silu(causal(self.convolution, u))
        step, b, c = self.x_proj(u).split([self.RANK, self.STATE, self.STATE], -1)
        delta, a = F.softplus(self.dt_proj(step)), -self.A_log.exp()
        y = self.loop(u, delta, a, b, c) if self.unrolled else selective_scan(u, delta, a, b, c, self.D)
        return self.leave(y * F.silu(gate))

    def loop(self, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        state, outputs = u.new_zeros(u.shape[0], self.CHANNELS, self.STATE), []
        decay, added = torch.exp(delta[..., None] * a), delta[..., None] * b[:, :, None] * u[..., None]
        for t in range(u.shape[1]):
            state = decay[:, t] * state + added[:, t]
            outputs.append((state @ c[:, t, :, None])[..., 0])
        return torch.stack(outputs, 1) + u * self.D


class Mamba2(nn.Module):
    """The mixer of Mamba-2: 8 heads of 8 in 2 groups, 16 states, a gated norm over all channels."""

    HEADS, WIDTH, GROUPS, STATE = 8, 8, 2, 16

    def __init__(self) -> None:
        super().__init__()
        channels, shared = self.HEADS * self.WIDTH, self.GROUPS * self.STATE
        self.widths = [channels, channels + 2 * shared, self.HEADS]
        self.enter, self.leave = nn.Linear(STREAM, sum(self.widths), False), nn.Linear(channels, STREAM, False)
        mixed = self.widths[1]
        self.convolution, self.norm = nn.Conv1d(mixed, mixed, 4, groups=mixed, padding=3), RMSNorm(channels)
        self.A_log, self.D, self.bias = (nn.Parameter(torch.zeros(self.HEADS)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        gate, mixed, step = self.enter(x).split(self.widths, -1)
        mixed = F.silu(causal(self.convolution, mixed))
        u, b, c = mixed.split([self.HEADS * self.WIDTH, *[self.GROUPS * self.STATE] * 2], -1)
        b, c = (part.unflatten(-1, (self.GROUPS, self.STATE)) for part in (b, c))
        delta = F.softplus(step + self.bias)
        y = state_space_duality(u.unflatten(-1, (self.HEADS, -1)), delta, -self.A_log.exp(), b, c, self.D)
        return self.leave(self.norm(y.flatten(2) * F.silu(gate)))


class StateSpaceModel(nn.Module):
    """Two mixers behind norms, between an embedding and a head."""

    def __init__(self, mixer: type[nn.Module], **options: bool) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, STREAM), nn.Linear(STREAM, VOCABULARY, False)
        self.mixers = nn.ModuleList(mixer(**options) for _ in range(2))
        self.norms = nn.ModuleList(RMSNorm() for _ in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for norm, mixer in zip(self.norms, self.mixers, strict=False):
            x = x + mixer(norm(x))
        return self.head(self.norms[2](x))


class Hybrid(nn.Module):
    """Attention, two state spaces and a feed-forward layer on one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, STREAM), nn.Linear(STREAM, VOCABULARY, False)
        self.layers = nn.ModuleList([Mamba1(), Gated(), Attention(kv_heads=2), FeedForward(False), Mamba2()])
        self.norms = nn.ModuleList(RMSNorm() for _ in range(6))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for norm, layer in zip(self.norms, self.layers, strict=False):
            x = x + layer(norm(x))
        return self.head(self.norms[5](x))
