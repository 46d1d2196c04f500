"""Lessons that rounding learns from the input of some sites: GPTQ where it holds on rows that it has not seen.

Sites are rounded one after the other, each for the input that it will really get: quantized, and computed by sites
that are quantized already (``sequential``). With ``x`` as the float graph reads it and ``x̂`` as the quantized one does,
GPTQ works on ``E[x̂ x̂ᵀ]`` and on a weight that is moved towards the one which makes ``x`` of ``x̂``, as GPTAQ does (Li et
al., 2025, arXiv:2504.02692).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from qcompile.rounding.gptq import Factor, GPTQResult, factorize, gptq
from qcompile.statistics.calibration import Statistics

if TYPE_CHECKING:
    from qcompile.formats import Format, Quantized
    from qcompile.transforms import Transform

__all__ = ["InputMoments", "input_moments", "joined"]

#: How much of the way a weight is moved to the least-squares estimate for the input of the quantized graph. That
#: estimate shrinks outputs the more the noisier its input is, which later layers do not expect; on the shipped
#: language model a quarter to three quarters do about equally well, and better than none or all of it (ADR 5).
SHIFT = 0.5


@dataclass(eq=False)
class InputMoments:
    """The input of some sites, in the basis in which they read it.

    Args:
        moment: ``E[x̂ x̂ᵀ]``, ``[size, size]`` float64.
        cross: ``E[x x̂ᵀ]``, or ``None`` where the two are the same.
        exact: ``x`` on rows that were held out, ``[rows, size]`` float32.
        seen: ``x̂`` there.
        rows: how many rows were seen in all.
    """

    moment: torch.Tensor
    cross: torch.Tensor | None
    exact: torch.Tensor
    seen: torch.Tensor
    rows: int

    @property
    def unusable(self) -> str | None:
        """Why GPTQ cannot learn from it: it moves errors to where the data happened to be silent."""
        if not self.moment.any():
            return "its input is zero on all calibration data"
        size = len(self.moment)
        return f"calibration data has {self.rows} rows for its {size} features" if self.rows < size else None

    @property
    def importance(self) -> torch.Tensor:
        """The energy of each feature, float32."""
        return self.moment.diagonal().float()

    @cached_property
    def _factor(self) -> Factor:
        return factorize(self.moment)

    @cached_property
    def _shift(self) -> torch.Tensor | None:
        """``[size, size]`` that moves a weight: ``W + W S``."""
        if self.cross is None:
            return None
        damped = self.moment.clone()
        damped.diagonal().add_(self._factor.damping * self.moment.diagonal().mean())
        return SHIFT * torch.linalg.solve(damped, self.cross - self.moment, left=False).float()

    def learn(self, weight: torch.Tensor, fmt: Format, tensor_scale: torch.Tensor | None = None) -> GPTQResult:
        """A weight ``[out, in]`` as GPTQ rounds it; a second-level scale may be given."""
        goal = weight if self._shift is None else weight + weight @ self._shift
        return gptq(goal, self._factor, fmt, scales="search", tensor_scale=tensor_scale)

    def error(self, weight: torch.Tensor, rounded: Quantized) -> float:
        """``‖x̂ Ŵᵀ - x Wᵀ‖² / ‖x Wᵀ‖²`` on the rows held out."""
        exact = self.exact @ weight.T
        made = self.seen @ rounded.dequantize().to(weight).T
        return float((made - exact).square().sum() / exact.square().sum().clamp_min(1e-30))


def input_moments(statistics: Statistics, transform: Transform | None, device: str = "cpu") -> InputMoments:
    """From statistics of the float graph alone, before the transform."""
    moment = torch.from_numpy(np.ascontiguousarray(statistics.second_moment))
    rows = torch.from_numpy(statistics.held_out)
    if transform is not None:
        moment = transform.apply(transform.apply(moment, 0), 1)
        rows = transform.apply(rows, -1)
    return InputMoments(moment.to(device), None, rows.to(device), rows.to(device), statistics.rows)


def joined(parts: Sequence[InputMoments]) -> InputMoments:
    """The input of all sites that share a weight, each as often as it has rows."""
    if len(parts) == 1:
        return parts[0]
    rows = sum(part.rows for part in parts)
    moment, cross = torch.zeros_like(parts[0].moment), torch.zeros_like(parts[0].moment)
    for part in parts:
        share = part.rows / max(rows, 1)
        moment += share * part.moment
        cross += share * (part.moment if part.cross is None else part.cross)
    exact, seen = torch.cat([part.exact for part in parts]), torch.cat([part.seen for part in parts])
    return InputMoments(moment, cross, exact, seen, rows)
