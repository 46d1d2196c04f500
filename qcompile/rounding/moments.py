"""Lessons that rounding learns from the input of some sites: GPTQ where it holds on rows that it has not seen.

Sites are rounded one after the other, each for the input that it will really get: quantized, and computed by sites
that are quantized already (``sequential``). With ``x`` as the float graph reads it and ``x̂`` as the quantized one does,
GPTQ works on ``E[x̂ x̂ᵀ]`` and on a weight that is moved towards the one which makes ``x`` of ``x̂``, as GPTAQ does (Li et
al., 2025, arXiv:2504.02692).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from qcompile.formats import search_scales
from qcompile.rounding.defaults import LEAST_DAMPING, SHIFT
from qcompile.rounding.gptq import Factor, GPTQResult, factorize, gptq
from qcompile.statistics.collected import Statistics
from qcompile.statistics.second_moment import moment_on, shrinkage

if TYPE_CHECKING:
    from qcompile.formats import Format, Quantized, Scales
    from qcompile.transforms import Transform

__all__ = ["InputMoments", "input_moments", "joined"]

#: How much of a moment may be noise; with more of it there is nothing to learn.
_MOST_SHRINKAGE = 0.5


@dataclass(eq=False)
class InputMoments:
    """The input of some sites, in the basis in which they read it.

    Args:
        moment: ``E[x̂ x̂ᵀ]``, ``[size, size]`` float64.
        cross: ``E[x x̂ᵀ]``, or ``None`` where the two are the same.
        exact: ``x`` on sequences that were held out, ``[rows, size]`` float32, one after the other.
        seen: ``x̂`` there.
        lengths: rows of each.
        effective: how many rows the moments were learned from, each counted for what it adds to the others.
    """

    moment: torch.Tensor
    cross: torch.Tensor | None
    exact: torch.Tensor
    seen: torch.Tensor
    lengths: Sequence[int]
    effective: float
    _factors: dict[float, Factor] = field(default_factory=dict, repr=False)

    @property
    def unusable(self) -> str | None:
        """Why nothing can be learned from it: GPTQ moves errors to where the data happened to be silent."""
        if not self.moment.any():
            return "its input is zero on all calibration data"
        if self._shrinkage <= _MOST_SHRINKAGE:
            return None
        return f"calibration data has {self.effective:.0f} independent rows for its {len(self.moment)} features"

    @property
    def importance(self) -> torch.Tensor:
        """The energy of each feature, float32."""
        return self.moment.diagonal().float()

    @cached_property
    def _shrinkage(self) -> float:
        return shrinkage(self.moment, self.effective)

    def factor(self, damping: float = LEAST_DAMPING) -> Factor:
        """The moment as GPTQ wants it, with that damping or as much as so few rows demand."""
        if damping not in self._factors:
            most = max(damping, self._shrinkage / (1 - self._shrinkage))
            self._factors[damping] = factorize(self.moment, most)
        return self._factors[damping]

    def damped(self, damping: float = LEAST_DAMPING) -> torch.Tensor:
        """The moment with a multiple of the mean of its diagonal added, as in its factor: float32."""
        lift = self.factor(damping).damping * self.moment.diagonal().mean()
        return (self.moment + lift * torch.eye(len(self.moment), device=self.moment.device)).float()

    def goal(self, weight: torch.Tensor, shift: float = SHIFT, damping: float = LEAST_DAMPING) -> torch.Tensor:
        """A weight ``[out, in]`` that is moved towards what makes ``x`` of ``x̂``, that part of the way."""
        if self.cross is None or not shift:
            return weight
        upper, order = self.factor(damping).upper, self.factor(damping).order
        moved = weight.clone()
        missed = shift * (self.cross - self.moment)[:, order].float()
        moved[:, order] += torch.linalg.multi_dot([weight, missed, upper.T, upper])  # in the order of least work
        return moved

    def learn(
        self, weight: torch.Tensor, fmt: Format, tensor_scale: torch.Tensor | None = None, shift: float = SHIFT,
        damping: float = LEAST_DAMPING, lean: float = 0.0, scales: Scales | None = None, together: int | None = None,
    ) -> GPTQResult:  # fmt: skip
        """A weight ``[out, in]`` as GPTQ rounds it; a second-level scale may be given, or all scales, and a bound."""
        goal, factor = self.goal(weight, shift, damping), self.factor(damping)
        if lean and scales is None:
            scales = search_scales(goal, fmt, weight=factor.importance(lean), tensor_scale=tensor_scale)
        return gptq(goal, factor, fmt, scales=scales or "search", tensor_scale=tensor_scale, together=together)

    def errors(self, weight: torch.Tensor, rounded: Quantized) -> np.ndarray:
        """``‖x̂ Ŵᵀ - x Wᵀ‖² / ‖x Wᵀ‖²`` of each sequence that was held out, relative to all of them: ``[sequences]``."""
        exact = self.exact @ weight.T
        made = self.seen @ rounded.dequantize().to(weight).T
        lost = (made - exact).square().sum(1, dtype=torch.float64) / exact.square().sum().clamp_min(1e-30)
        return np.array([float(part.sum()) for part in lost.split(list(self.lengths))])


def input_moments(statistics: Statistics, transform: Transform | None, device: str = "cpu") -> InputMoments:
    """From statistics of the float graph alone, before the transform."""
    moment = moment_on(statistics.second_moment, device, torch.float64)
    held_out = np.concatenate([np.zeros((0, len(moment)), np.float32), *statistics.held_out])
    rows = torch.from_numpy(held_out).to(device)
    if transform is not None:
        moment = transform.apply(transform.apply(moment, 0), 1)
        rows = transform.apply(rows, -1)
    lengths = [len(part) for part in statistics.held_out]
    return InputMoments(moment, None, rows, rows, lengths, statistics.effective)


def joined(parts: Sequence[InputMoments]) -> InputMoments:
    """The input of all sites that share a weight, each as often as it has rows; a sequence stays one sequence."""
    if len(parts) == 1:
        return parts[0]
    total = sum(part.effective for part in parts)
    moment, cross = torch.zeros_like(parts[0].moment), torch.zeros_like(parts[0].moment)
    for part in parts:
        share = part.effective / max(total, 1e-30)
        moment += share * part.moment
        cross += share * (part.moment if part.cross is None else part.cross)
    exact = [part.exact.split(list(part.lengths)) for part in parts]
    seen = [part.seen.split(list(part.lengths)) for part in parts]
    count = min(map(len, exact))  # a site in a body may have seen fewer
    lengths = [sum(part.lengths[i] for part in parts) for i in range(count)]
    in_turn = [torch.cat([own[i] for i in range(count) for own in found]) for found in (exact, seen)]
    return InputMoments(moment, cross, in_turn[0], in_turn[1], lengths, total)
