"""Small decoders of many families: tokens ``[batch, length]`` to logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from blocks import HEAD, HEADS, HIDDEN, STREAM, VOCABULARY, Attention, Gated, RMSNorm, rotary
from torch import Tensor, nn

__all__ = [
    "BatchedExperts", "Cached", "Decoder", "DenseExperts", "GatheredExperts", "InterleavedExperts", "LatentAttention",
    "ParallelDecoder", "SandwichDecoder", "SinkAttention", "alibi", "experts", "window",
]  # fmt: skip


class Decoder(nn.Module):
    """Two pre-norm blocks between an embedding and a head."""

    def __init__(
        self, attention: Callable[[], nn.Module], feed_forward: Callable[[], nn.Module] = Gated,
        norm: Callable[[], nn.Module] = RMSNorm, *, positions: bool = False, scale: float = 1.0, tied: bool = False,
        bias: Callable[[int], Tensor] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embedding, self.scale, self.bias = nn.Embedding(VOCABULARY, STREAM), scale, bias
        self.positions = nn.Embedding(16, STREAM) if positions else None
        self.mixers = nn.ModuleList(attention() for _ in range(2))
        self.layers = nn.ModuleList(feed_forward() for _ in range(2))
        self.norms = nn.ModuleList(norm() for _ in range(5))
        self.head = nn.Linear(STREAM, VOCABULARY, False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) * self.scale
        if self.positions is not None:
            x = x + self.positions(torch.arange(ids.shape[1]))
        more = {} if self.bias is None else {"bias": self.bias(ids.shape[1])}
        for i, (mixer, layer) in enumerate(zip(self.mixers, self.layers, strict=True)):
            x = self.block(x, i, mixer, layer, more)
        return self.head(self.norms[4](x))

    def block(self, x: Tensor, i: int, mixer: nn.Module, layer: nn.Module, more: dict) -> Tensor:
        x = x + mixer(self.norms[2 * i](x), **more)
        return x + layer(self.norms[2 * i + 1](x))


class ParallelDecoder(Decoder):
    """Attention and feed-forward layer side by side, each behind a norm of its own."""

    def block(self, x: Tensor, i: int, mixer: nn.Module, layer: nn.Module, more: dict) -> Tensor:
        return x + mixer(self.norms[2 * i](x), **more) + layer(self.norms[2 * i + 1](x))


class SandwichDecoder(Decoder):
    """A norm with a scale behind each layer as well."""

    def __init__(self) -> None:
        super().__init__(lambda: Attention(rope=1.0))
        self.after = nn.ModuleList(RMSNorm() for _ in range(4))

    def block(self, x: Tensor, i: int, mixer: nn.Module, layer: nn.Module, more: dict) -> Tensor:
        x = x + self.after[2 * i](mixer(self.norms[2 * i](x)))
        return x + self.after[2 * i + 1](layer(self.norms[2 * i + 1](x)))


class Cached(nn.Module):
    """One block that reads and writes a cache ``[batch, heads, past, head]`` of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, STREAM), nn.Linear(STREAM, VOCABULARY, False)
        self.q, self.k, self.v, self.out = (nn.Linear(STREAM, STREAM, False) for _ in range(4))
        self.norms, self.layer = nn.ModuleList(RMSNorm() for _ in range(3)), Gated()

    def forward(self, ids: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.embedding(ids)
        y = self.norms[0](x)
        q, k, v = (p(y).unflatten(-1, (HEADS, HEAD)).transpose(1, 2) for p in (self.q, self.k, self.v))
        k, v = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        mixed = (q @ k.transpose(-2, -1) / HEAD**0.5).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        x = x + self.layer(self.norms[1](x))
        return self.head(self.norms[2](x)), k, v


class LatentAttention(nn.Module):
    """Multi-head latent attention: queries and keys with values through low ranks, one rotary key for all heads."""

    RANK_Q, RANK_KV, ROPE = 24, 16, 4

    def __init__(self) -> None:
        super().__init__()
        self.q_down, self.q_norm = nn.Linear(STREAM, self.RANK_Q, False), RMSNorm(self.RANK_Q)
        self.q_up = nn.Linear(self.RANK_Q, HEADS * (HEAD + self.ROPE), False)
        self.kv_down = nn.Linear(STREAM, self.RANK_KV + self.ROPE, False)
        self.kv_norm = RMSNorm(self.RANK_KV)
        self.kv_up = nn.Linear(self.RANK_KV, HEADS * 2 * HEAD, False)
        self.out = nn.Linear(HEADS * HEAD, STREAM, False)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        q, q_turned = q.split([HEAD, self.ROPE], -1)
        latent, k_turned = self.kv_down(x).split([self.RANK_KV, self.ROPE], -1)
        kv = self.kv_up(self.kv_norm(latent)).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k, v = kv.chunk(2, -1)
        k_turned = rotary(k_turned[:, None]).expand(-1, HEADS, -1, -1)
        q, k = torch.cat([q, rotary(q_turned)], -1), torch.cat([k, k_turned], -1)
        scores = q @ k.transpose(-2, -1) / (HEAD + self.ROPE) ** 0.5
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.out((scores.masked_fill(mask, -1e9).softmax(-1) @ v).transpose(1, 2).flatten(2))


class SinkAttention(Attention):
    """Each head may look at nothing: one more score, learned, whose value is zero."""

    def __init__(self) -> None:
        super().__init__(kv_heads=2, rope=1.0, bias=True)
        self.sinks = nn.Parameter(torch.zeros(HEADS))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, HEAD)).transpose(1, 2) for p in self.projections)
        q, k = rotary(q), rotary(k)
        k, v = (part.repeat_interleave(HEADS // self.kv_heads, 1) for part in (k, v))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = (q @ k.transpose(-2, -1) / HEAD**0.5).masked_fill(mask, -1e9)
        sinks = self.sinks[None, :, None, None].expand(x.shape[0], -1, x.shape[1], 1)
        mixed = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1] @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


# -- mixtures of experts -----------------------------------------------------------------------------------------

EXPERTS = 4


class DenseExperts(nn.Module):
    """Every expert computes every token, weighted by a router."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(STREAM, EXPERTS, False)
        self.experts = nn.ModuleList(Gated() for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        return sum(weights[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


class StackedExperts(nn.Module):
    """The weights of all experts in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(STREAM, EXPERTS, False)
        self.gate = nn.Parameter(torch.empty(EXPERTS, STREAM, HIDDEN))
        self.up = nn.Parameter(torch.empty(EXPERTS, STREAM, HIDDEN))
        self.down = nn.Parameter(torch.empty(EXPERTS, HIDDEN, STREAM))


class BatchedExperts(StackedExperts):
    """One batched product for all experts and all tokens."""

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        rows = x.flatten(0, 1)[None].expand(EXPERTS, -1, -1)
        made = (nn.functional.silu(rows @ self.gate) * (rows @ self.up)) @ self.down
        return (made * weights.flatten(0, 1).T[..., None]).sum(0).unflatten(0, x.shape[:2])


class GatheredExperts(StackedExperts):
    """The weights of the two chosen experts are looked up for each token."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        weights, chosen = self.router(rows).softmax(-1).topk(2, -1)
        up = torch.einsum("td,tkdf->tkf", rows, self.up[chosen])
        gate = torch.einsum("td,tkdf->tkf", rows, self.gate[chosen])
        made = torch.einsum("tkf,tkfd->tkd", nn.functional.silu(gate) * up, self.down[chosen])
        return (made * weights[..., None]).sum(1).unflatten(0, x.shape[:2])


class InterleavedExperts(nn.Module):
    """Gates and values in turn along one axis, clamped, with a bias for each expert."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(STREAM, EXPERTS)
        self.up, self.down = (nn.Parameter(torch.empty(EXPERTS, *n)) for n in ((STREAM, 2 * HIDDEN), (HIDDEN, STREAM)))
        self.up_bias, self.down_bias = (nn.Parameter(torch.empty(EXPERTS, n)) for n in (2 * HIDDEN, STREAM))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1).flatten(0, 1)
        rows = x.flatten(0, 1)[None].expand(EXPERTS, -1, -1)
        made = rows @ self.up + self.up_bias[:, None]
        gate, value = made[..., ::2].clamp(max=7.0), made[..., 1::2].clamp(-7.0, 7.0)
        made = (value + 1) * gate * torch.sigmoid(1.7 * gate) @ self.down + self.down_bias[:, None]
        return (made * weights.T[..., None]).sum(0).unflatten(0, x.shape[:2])


def experts(kind: type[nn.Module]) -> Decoder:
    """A decoder with experts for feed-forward layers."""
    return Decoder(lambda: Attention(rope=1.0, kv_heads=2), kind)


def alibi(length: int) -> Tensor:
    """A slope for each head times the distance."""
    place = torch.arange(length)
    return -(2.0 ** -torch.arange(1.0, HEADS + 1))[:, None, None] * (place[:, None] - place).abs()


def window(length: int) -> Tensor:
    """A position sees the three before it."""
    place = torch.arange(length)
    return torch.where(place[:, None] - place > 3, -1e9, 0.0)
