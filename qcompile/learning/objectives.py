"""The losses: how far outputs are from those of the float model, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qcompile.errors import InputError
from qcompile.run.compare import float_tensors

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Wanted", "departure"]

#: Elements of outputs of the float model that are kept; more are computed again when they are needed.
KEPT = 1 << 26


def departure(wanted: Mapping[str, Tensor], made: Mapping[str, Tensor], logits: Collection[str]) -> Tensor:
    """Mean KL divergence over logits, if there are any, else half the relative squared error of the outputs: a scalar.

    Args:
        wanted: outputs of the float model.
        made: outputs with gradients.
        logits: names of those that are scores over one vocabulary.

    Raises:
        InputError: if no output holds floating-point numbers.
    """
    if logits:
        return torch.stack([_divergence(wanted[name], made[name]) for name in logits]).mean()
    want = float_tensors(wanted)
    if not want:
        raise InputError("the model has no floating-point output to learn from")
    parts = [
        (made[name] - x).float().square().sum() / x.float().square().sum().clamp_min(1e-30) for name, x in want.items()
    ]
    return 0.5 * torch.stack(parts).mean()


def _divergence(wanted: Tensor, made: Tensor) -> Tensor:
    p, q = wanted.float().log_softmax(-1), made.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


@dataclass
class Wanted:
    """Outputs of the float model by batch; those that are not large are kept.

    Args:
        batches: its inputs.
        compute: the float model.
    """

    batches: Sequence[Mapping[str, np.ndarray]]
    compute: Callable[[Mapping[str, np.ndarray]], Mapping[str, Tensor]]
    _known: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    _size: int = 0

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        if index in self._known:
            return self._known[index]
        with torch.no_grad():
            found = dict(self.compute(self.batches[index]))
        size = sum(tensor.numel() for tensor in float_tensors(found).values())
        if self._size + size <= KEPT:
            self._known[index] = found
            self._size += size
        return found
