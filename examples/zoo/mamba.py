"""A byte-level Mamba-1 language model (Gu and Dao, 2023), small enough to ship with the project.

Names of parameters follow the authors' code. Everything that is particular to the state space sits
in the one function `selective_scan`; a model takes the scan as an argument, so that a fused kernel
or an exportable custom operator can stand in for the loop below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Mamba", "Scan", "Shape", "selective_scan"]

Scan = Callable[..., Any]

#: What a layer knows of the past: `conv`, its last inputs, and `recurrent`, the state of its scan.
Held = dict[str, Tensor]


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None = None
) -> Any:
    """The recurrence h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t, y_t = C_t h_t + D u_t.

    u and delta are [batch, length, channels], A [channels, state], B and C [batch, length, state],
    D [channels]; the result is shaped like u. With a state [batch, channels, state] to go on from, the last one is
    returned as well. One step at a time: the reference, not the fast way.
    """
    given, state = state, u.new_zeros(u.shape[0], u.shape[2], A.shape[1]) if state is None else state
    outputs = []
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)
        state = decay * state + (delta[:, t] * u[:, t])[..., None] * B[:, t, None, :]
        outputs.append((state * C[:, t, None, :]).sum(-1))
    y = torch.stack(outputs, dim=1) + D * u
    return y if given is None else (y, state)


@dataclass(frozen=True)
class Shape:
    """Sizes of the shipped model: 2.06 million parameters."""

    vocabulary: int = 256
    hidden: int = 192
    layers: int = 8
    inner: int = 384
    state: int = 16
    kernel: int = 4
    rank: int = 12
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


class CausalConvolution(nn.Conv1d):
    """A depthwise convolution over [batch, length, channels] that sees no later position."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(channels, channels, kernel, groups=channels, padding=kernel - 1)

    def forward(self, x: Tensor, past: Tensor | None = None) -> Tensor:
        length = x.shape[1]
        if past is not None:  # [batch, kernel - 1, channels], which stand where zeros would
            whole = torch.cat((past, x), 1).transpose(1, 2)
            return F.conv1d(whole, self.weight, self.bias, groups=self.groups).transpose(1, 2)
        if not self.training:
            return super().forward(x.transpose(1, 2))[..., :length].transpose(1, 2)
        # The same sum tap by tap: a compiler fuses it, while the weight gradient of a depthwise
        # convolution is slow on a GPU.
        taps = self.weight[:, 0].unbind(-1)
        padded = F.pad(x, (0, 0, len(taps) - 1, 0))
        return sum((padded[:, k : k + length] * tap for k, tap in enumerate(taps)), self.bias)


class Mixer(nn.Module):
    """The selective state space block between two projections."""

    def __init__(self, shape: Shape, scan: Scan) -> None:
        super().__init__()
        self.shape = shape
        self.scan = scan
        self.in_proj = nn.Linear(shape.hidden, 2 * shape.inner, bias=False)
        self.conv1d = CausalConvolution(shape.inner, shape.kernel)
        self.x_proj = nn.Linear(shape.inner, shape.rank + 2 * shape.state, bias=False)
        self.dt_proj = nn.Linear(shape.rank, shape.inner)
        self.out_proj = nn.Linear(shape.inner, shape.hidden, bias=False)
        decay = torch.arange(1, shape.state + 1, dtype=torch.float32)
        self.A_log = nn.Parameter(decay.log().repeat(shape.inner, 1))
        self.D = nn.Parameter(torch.ones(shape.inner))

    def initialize_step_size(self) -> None:
        """Steps spread log-uniformly over 0.001..0.1 at the start, as the authors do."""
        nn.init.uniform_(self.dt_proj.weight, -(self.shape.rank**-0.5), self.shape.rank**-0.5)
        spread = torch.rand(self.shape.inner) * math.log(100.0) + math.log(0.001)
        step = spread.exp()
        with torch.no_grad():
            # softplus(bias) = step
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))

    def forward(self, x: Tensor, past: Held | None = None) -> tuple[Tensor, Held]:
        """What the mixer makes of x; from a past on, also what it knows behind it."""
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        held = {}
        if past is not None:
            held["conv"] = torch.cat((past["conv"], u), 1)[:, -(self.shape.kernel - 1) :]
        u = F.silu(self.conv1d(u, None if past is None else past["conv"]))
        sizes = [self.shape.rank, self.shape.state, self.shape.state]
        step, B, C = self.x_proj(u).split(sizes, dim=-1)
        delta = F.softplus(self.dt_proj(step).float())
        # The recurrence multiplies hundreds of factors: float32 whatever the projections ran in.
        operands = u.float(), delta, -self.A_log.exp(), B.float(), C.float(), self.D
        if past is None:
            y = self.scan(*operands)
        else:
            y, held["recurrent"] = self.scan(*operands, past["recurrent"])
        return self.out_proj(y * F.silu(gate)), held


class Block(nn.Module):
    """Pre-norm mixer on the residual stream."""

    def __init__(self, shape: Shape, dropout: float, scan: Scan) -> None:
        super().__init__()
        self.norm = RMSNorm(shape.hidden, shape.epsilon)
        self.mixer = Mixer(shape, scan)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, past: Held | None = None) -> tuple[Tensor, Held]:
        mixed, held = self.mixer(self.norm(x), past)
        return x + self.dropout(mixed), held


class Mamba(nn.Module):
    """Token ids int64 [batch, length] -> logits float32 [batch, length, vocabulary].

    With a past, by number of layer, it returns `logits` and the `present` that takes its place: states of one size.
    """

    def __init__(self, shape: Shape | None = None, dropout: float = 0.0, scan: Scan = selective_scan) -> None:
        super().__init__()
        self.shape = shape = shape or Shape()
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.blocks = nn.ModuleList(Block(shape, dropout, scan) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.epsilon)
        self.apply(self._initialize)

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            writes_stream = isinstance(module, nn.Linear) and module.out_features == self.shape.hidden
            nn.init.normal_(module.weight, std=0.05 * (self.shape.layers**-0.5 if writes_stream else 1.0))
        if isinstance(module, Mixer):  # after its Linear children: apply() visits parents last
            module.initialize_step_size()

    def forward(self, input_ids: Tensor, past: dict[str, Held] | None = None) -> Tensor | dict[str, Any]:
        x = self.embedding(input_ids)
        present = {}
        for layer, block in enumerate(self.blocks):
            x, present[str(layer)] = block(x, None if past is None else past[str(layer)])
        logits = F.linear(self.norm(x), self.embedding.weight)
        return logits if past is None else {"logits": logits, "present": present}

    def start(self, batch: int) -> dict[str, Held]:
        """The past of texts that begin."""
        shape, zeros = self.shape, self.embedding.weight.new_zeros
        sizes = {"conv": (batch, shape.kernel - 1, shape.inner), "recurrent": (batch, shape.inner, shape.state)}
        return {str(layer): {name: zeros(size) for name, size in sizes.items()} for layer in range(shape.layers)}
