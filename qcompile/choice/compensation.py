"""How much of a weight's rounding error GPTQ makes up for, before it is run.

What rounding column ``j`` loses, ``δ_j``, the columns still to come make up for as far as they say the same: what is
left is ``δ_j² p_j``, with ``p_j`` the variance of input ``j`` given those inputs, a pivot of the Cholesky factor of the
second moment. Rounding to nearest leaves ``δ_j² G_jj``. The ratio of the two sums predicts the error of GPTQ to a few
hundredths, from 0.05 of that of rounding to nearest to all of it, and it differs between transforms of one input.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from qcompile.statistics.second_moment import moment_on, shrinkage

if TYPE_CHECKING:
    from qcompile.statistics.collected import Statistics
    from qcompile.transforms import Transform

__all__ = ["Compensation", "LastMoment"]

#: What GPTQ adds to the diagonal, of its mean.
DAMPING = 0.01


class LastMoment:
    """The shrunk moments of inputs on a device, of which the one that was asked for last is kept: they are large."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._last: tuple[Statistics, torch.Tensor] | None = None

    def of(self, statistics: Statistics) -> torch.Tensor:
        """Float32 ``[in, in]``, not to be written to."""
        if self._last is None or self._last[0] is not statistics:
            self._last = None  # before the next one takes its place
            moment = moment_on(statistics.second_moment, self._device, torch.float32)
            rho, mean = shrinkage(moment, statistics.effective), float(moment.diagonal().mean())
            moment = moment.mul_(1 - rho)
            moment.diagonal().add_(rho * mean)
            self._last = statistics, moment
        return self._last[1]


@dataclass(frozen=True, eq=False)
class Compensation:
    """The part of errors that is left where all sites that read one input learn from it.

    Args:
        statistics: of the input.
        moments: of this and other inputs.
    """

    statistics: Statistics
    moments: LastMoment = field(default_factory=LastMoment)
    _known: dict[int, tuple[Any, torch.Tensor, torch.Tensor]] = field(default_factory=dict, repr=False)

    def remaining(self, lost: torch.Tensor, transform: Transform | None) -> float:
        """The part of a weight's error that is left after compensation.

        Args:
            lost: by column, the squared error of rounding to nearest: ``[in]``.
            transform: the basis of the input.
        """
        pivots, energies = self._pivots(transform)
        return float(pivots @ lost) / max(float(energies @ lost), 1e-30)

    def _pivots(self, transform: Transform | None) -> tuple[torch.Tensor, torch.Tensor]:
        """By column, what is left of a unit of error, and what there was: two of ``[in]``."""
        of, pivots, energies = self._known.get(id(transform), (None, None, None))
        if of is None or of() is not transform or pivots is None or energies is None:
            pivots, energies = self._made(transform)
            self._known[id(transform)] = _reference(transform), pivots, energies
        return pivots, energies

    def _made(self, transform: Transform | None) -> tuple[torch.Tensor, torch.Tensor]:
        moment = self.moments.of(self.statistics)
        if transform is not None:
            moment = transform.apply(transform.apply(moment, 0), 1)
        energies = moment.diagonal().clone()
        order = energies.argsort()  # GPTQ begins with the loudest: the last pivot is the first column's
        damped = moment[order][:, order]
        damped.diagonal().add_(DAMPING * energies.mean().clamp_min(1e-30))
        factor, failed = torch.linalg.cholesky_ex(damped)
        if failed:
            return energies, energies
        pivots = torch.empty_like(energies)
        pivots[order] = factor.diagonal().square()
        return torch.minimum(pivots, energies), energies


def _reference(transform: Transform | None) -> Any:
    return (lambda: None) if transform is None else weakref.ref(transform)
