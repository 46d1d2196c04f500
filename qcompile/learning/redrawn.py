"""Sequences drawn anew from the float model: more to learn from than was given, and nearer to what it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from qcompile.learning.objectives import Wanted
from qcompile.statistics.sensitivity import next_token_loss, next_tokens

if TYPE_CHECKING:
    Batch = Mapping[str, np.ndarray]

__all__ = ["Redrawn", "redrawn"]

#: The part of the tokens that are drawn anew.
SHARE = 0.3


@dataclass(frozen=True)
class Redrawn:
    """Batches of which some tokens are replaced, each time others, by draws from what the float model predicts there.

    The predictions are those for the batch as it was given, so that one pass of the float model serves all draws of it.

    Args:
        batches: as they were given.
        wanted: the float model's outputs for them.
        compute: the float model.
        tokens: name of the input whose next elements the logits predict.
        logits: name of that output.
        drawn: the source of what is random.
    """

    batches: Sequence[Batch]
    wanted: Wanted
    compute: Callable[[Batch], Mapping[str, Tensor]]
    tokens: str
    logits: str
    drawn: np.random.Generator = field(default_factory=np.random.default_rng)

    def __call__(self, index: int) -> tuple[Batch, Mapping[str, Tensor]]:
        """One of the batches with other tokens, and the float model's outputs for it."""
        batch = self.batches[index]
        ids = np.array(batch[self.tokens])
        predicted = self.wanted[index][self.logits][:, :-1]
        taken = self.drawn.random(predicted.shape[:2]) < SHARE
        reached = predicted[torch.from_numpy(taken).to(predicted.device)].float().softmax(-1).cumsum(-1)
        heights = torch.from_numpy(self.drawn.random((len(reached), 1))).to(reached) * reached[:, -1:]
        others = torch.searchsorted(reached, heights).clamp_max(reached.shape[-1] - 1)[:, 0]
        ids[:, 1:][taken] = others.cpu().numpy()
        batch = {**batch, self.tokens: ids}
        with torch.no_grad():
            return batch, self.compute(batch)


def redrawn(
    batches: Sequence[Batch], wanted: Wanted, compute: Callable[[Batch], Mapping[str, Tensor]],
    logits: Collection[str], seed: int,
) -> Redrawn | None:  # fmt: skip
    """The batches with tokens that are drawn anew, if the float model predicts next tokens, else ``None``.

    Integers of the right shape are not enough: the next of them must be less of a surprise than by how often each
    occurs.
    """
    if len(logits) != 1 or not batches:
        return None
    outputs, (name,) = wanted[0], logits
    tokens = next_tokens(batches[0], outputs, logits)
    if tokens is None or outputs[name].dim() != 3:
        return None
    counts = np.unique(tokens[1], return_counts=True)[1] / tokens[1].size
    if next_token_loss(outputs[name], tokens[1]) >= float(-(counts * np.log(counts)).sum()):
        return None
    return Redrawn(batches, wanted, compute, tokens[0], name, np.random.default_rng(seed))
