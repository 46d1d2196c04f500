"""A byte-level language model in the Llama style, small enough to ship with the project.

RMSNorm with gamma, rotary positions, grouped-query attention, SwiGLU and a tied embedding, written
the way such models usually are: what a compiler finds here, it has to find in other people's models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LanguageModel", "Shape"]

#: Keys and values of one layer, each [batch, key_value_heads, length, head_size].
Held = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """Sizes of the shipped model: 2.41 million parameters.

    The hidden size is no power of two on purpose, so that a rotation needs a Hadamard matrix of
    order 12·2^k, as in many real models.
    """

    vocabulary: int = 256
    hidden: int = 192
    layers: int = 6
    heads: int = 6
    key_value_heads: int = 2
    head_size: int = 32
    intermediate: int = 512
    rotary_base: float = 10000.0
    epsilon: float = 1e-5


class RMSNorm(nn.Module):
    """x / rms(x) * gamma over the last axis (Zhang and Sennrich, 2019)."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        mean_square = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(mean_square + self.epsilon))


def rotary_tables(length: int, shape: Shape, device: torch.device, start: int = 0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding (Su et al., 2021) from a position on, each [length, head_size]."""
    pairs = torch.arange(0, shape.head_size, 2, device=device, dtype=torch.float32)
    frequencies = shape.rotary_base ** (-pairs / shape.head_size)
    positions = torch.arange(start, start + length, device=device, dtype=torch.float32)
    angles = positions[:, None] * frequencies[None, :]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate_half(x: Tensor) -> Tensor:
    """(a, b) -> (-b, a) on the two halves of the last axis."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def repeat_heads(x: Tensor, times: int) -> Tensor:
    """Each key/value head serves `times` query heads: [B, H, L, S] -> [B, H * times, L, S]."""
    batch, heads, length, size = x.shape
    x = x[:, :, None, :, :].expand(batch, heads, times, length, size)
    return x.reshape(batch, heads * times, length, size)


class Attention(nn.Module):
    """Causal grouped-query attention (Ainslie et al., 2023)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        queries = shape.heads * shape.head_size
        keys = shape.key_value_heads * shape.head_size
        self.q_proj = nn.Linear(shape.hidden, queries, bias=False)
        self.k_proj = nn.Linear(shape.hidden, keys, bias=False)
        self.v_proj = nn.Linear(shape.hidden, keys, bias=False)
        self.o_proj = nn.Linear(queries, shape.hidden, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, past: Held | None = None) -> tuple[Tensor, Held]:
        """What attention makes of x, and the keys and values of the past with those of x behind them."""
        batch, length, _ = x.shape
        split = (batch, length, -1, self.shape.head_size)
        query = self.q_proj(x).view(split).transpose(1, 2)
        key = self.k_proj(x).view(split).transpose(1, 2)
        value = self.v_proj(x).view(split).transpose(1, 2)
        query = (query * cosine + rotate_half(query) * sine).to(value.dtype)
        key = (key * cosine + rotate_half(key) * sine).to(value.dtype)
        seen = None
        if past is not None:
            key, value = torch.cat((past["key"], key), 2), torch.cat((past["value"], value), 2)
            places = torch.arange(key.shape[2], device=x.device)
            seen = places <= (places[-length:])[:, None]
        held = {"key": key, "value": value}
        times = self.shape.heads // self.shape.key_value_heads
        key, value = repeat_heads(key, times), repeat_heads(value, times)
        mixed = F.scaled_dot_product_attention(query, key, value, seen, is_causal=seen is None)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1)), held


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Pre-norm attention and feed-forward on one residual stream."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.input_norm = RMSNorm(shape.hidden, shape.epsilon)
        self.attention = Attention(shape)
        self.feed_forward_norm = RMSNorm(shape.hidden, shape.epsilon)
        self.feed_forward = FeedForward(shape)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, past: Held | None = None) -> tuple[Tensor, Held]:
        mixed, held = self.attention(self.input_norm(x), cosine, sine, past)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), held


class LanguageModel(nn.Module):
    """Token ids int64 [batch, length] -> logits float32 [batch, length, vocabulary].

    With a past, by number of layer, it returns `logits` and the `present` that takes its place.
    """

    def __init__(self, shape: Shape | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape = shape or Shape()
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.blocks = nn.ModuleList(Block(shape, dropout) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.epsilon)
        self.apply(self._initialize)

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            # Branches that write the residual stream start smaller, so that its variance does not
            # grow with depth (GPT-2).
            writes_stream = isinstance(module, nn.Linear) and module.out_features == self.shape.hidden
            depth = (2 * self.shape.layers) ** -0.5 if writes_stream else 1.0
            nn.init.normal_(module.weight, std=0.05 * depth)

    def forward(self, input_ids: Tensor, past_key_values: dict[str, Held] | None = None) -> Tensor | dict[str, Any]:
        x = self.embedding(input_ids)
        start = 0 if past_key_values is None else past_key_values["0"]["key"].shape[2]
        cosine, sine = rotary_tables(input_ids.shape[1], self.shape, input_ids.device, start)
        present = {}
        for layer, block in enumerate(self.blocks):
            past = None if past_key_values is None else past_key_values[str(layer)]
            x, present[str(layer)] = block(x, cosine, sine, past)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return logits if past_key_values is None else {"logits": logits, "present": present}
