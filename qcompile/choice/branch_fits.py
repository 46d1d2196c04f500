"""Branches of low rank, fitted in three ways, of which the one counts that errs least on rows that it has not seen.

Of the *weight*: its leading directions (SVDQuant, Li et al., 2024, arXiv:2411.05007). Of the *error*: those of what
rounding loses (LoRC, Wu et al., 2023, arXiv:2307.09782). Of the *input*: those of what the site reads, ``P R x``, which
are taken off before it is rounded, ``y = W (x - P R x) + (W P) R x``: where inputs are rounded, most of the error is
theirs, and inputs have far fewer loud directions than weights. Siblings share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qcompile.choice.branches import Apart, rank_in
from qcompile.choice.samples import Samples
from qcompile.choice.splits import Branch
from qcompile.targets.scheme import FLOAT, Scheme

if TYPE_CHECKING:
    import numpy as np
    import torch

    from qcompile.formats.scalar import Scalar
    from qcompile.statistics.collected import Statistics
    from qcompile.transforms import Transform

__all__ = ["Beside", "Fits", "fit_branches"]

#: Rows of all held-out sequences together by which ways are told apart.
_JUDGES = 512

#: Of the mean energy of features, what one that is silent counts.
_SILENT = 1e-6


@dataclass(frozen=True, eq=False)
class Beside:
    """A branch: ``left [out, rank]`` and ``right [rank, in]``.

    Args:
        few: the rows of ``left`` that a prediction looks at.
        scheme: of all its products.
        back: ``[in, rank]``, by which the branch is taken off the input, of which the weight stays whole; without it,
            the branch is taken out of the weight.
        share: the energy of the site's output over that of what the site makes of its input itself, where ``back`` is.
    """

    left: torch.Tensor
    right: torch.Tensor
    few: torch.Tensor
    scheme: Scheme = FLOAT
    back: torch.Tensor | None = None
    share: float = 1.0

    def spread(self, count: int) -> Beside:
        """With as many of the rows to look at, evenly spread."""
        from qcompile.statistics.collected import spread

        return replace(self, few=spread(self.few, count))

    def rest(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight ``[out, in]`` that the site itself has."""
        return weight - self.left @ self.right if self.back is None else weight

    def whole(self, rest: torch.Tensor) -> torch.Tensor:
        """Rows of the weight, from what the site has of them."""
        return rest + self.few @ self.right if self.back is None else rest

    def seen(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of the input ``[rows, in]`` as the site reads them, before they are rounded."""
        return rows if self.back is None else rows - rows @ self.right.T @ self.back.T

    def energy(self, rows: torch.Tensor, own: torch.Tensor, transform: Transform | None) -> torch.Tensor:
        """The energy of the output on rows that the site reads in the basis of a transform: ``[rows]``.

        Args:
            own: what the site itself makes of them, ``[rows, few]``.
        """
        if self.back is not None:
            return own.square().sum(1) * self.share
        return (own + rows @ self._turned(transform).T @ self.few.T).square().sum(1)

    def off(self, rows: torch.Tensor, transform: Transform | None, *, few: bool = True) -> torch.Tensor:
        """The error of the output of the branch, or of a few of its rows, with it in its formats."""
        from qcompile.formats import fake_quantize, fake_quantize_rows

        weight, activation, right = self.scheme.weight, self.scheme.activation, self._turned(transform)
        left = self.few if few else self.left
        if weight is None:
            return rows.new_zeros(len(rows), 1)
        seen = rows if activation is None else fake_quantize_rows(rows, activation)
        middle = seen @ fake_quantize(right, weight).T
        middle = middle if activation is None else fake_quantize_rows(middle, activation)
        return middle @ fake_quantize(left, weight).T - rows @ right.T @ left.T

    def _turned(self, transform: Transform | None) -> torch.Tensor:
        return self.right if transform is None else transform.dual().apply(self.right, -1)


@dataclass(eq=False)
class Fits:
    """The branches of siblings under schemes, each fitted when it is first asked for.

    Args:
        weights: read the whole weights ``[out, in]``, one after the other.
        known: of their input; without it all features count alike, and there is nothing to judge by.
    """

    weights: Sequence[Callable[[], torch.Tensor]]
    known: Statistics | None
    _found: dict[str, list[Beside]] = field(default_factory=dict, repr=False)
    _samples: dict[str, Samples] = field(default_factory=dict, repr=False)

    def of(self, apart: Apart) -> list[Beside]:
        """The branch of each of the siblings."""
        if apart.name not in self._found:
            weights = [read() for read in self.weights]
            made = fit_branches(weights, self.known, apart.alone, apart.branch)
            self._found[apart.name] = [replace(branch, scheme=apart.beside) for branch in made]
        return self._found[apart.name]

    def samples(self, apart: Apart, whole: Samples | None) -> Samples | None:
        """Samples of what is left of the input for the siblings themselves, made like those of the whole."""
        if self.known is None or whole is None:
            return None
        if apart.name not in self._samples:
            left = _without(self.known, self.of(apart)[0])
            learned = None if whole.learned is None else whole.learned.moments
            self._samples[apart.name] = Samples.of(left, learned, str(whole.rows.device))
        return self._samples[apart.name]


def fit_branches(
    weights: Sequence[torch.Tensor], known: Statistics | None, alone: Scheme, how: Branch
) -> list[Beside]:  # fmt: skip
    """The branches of siblings.

    Args:
        weights: ``[out, in]`` each.
        known: of their input, if it is known.
        alone: what the rest is rounded to, as far as that is known.
        how: which branch; of several ways the one is taken whose output errs least on sequences held out. In other
            formats than float there is none of the input, which must cancel.
    """
    energy = None if known is None or not len(known.second_moment) else known.second_moment.diagonal()
    ways: tuple[str, ...] = ("weight", "error", "input") if how.of == "best" else (how.of,)
    if energy is None or how.format != FLOAT.name:
        ways = tuple(way for way in ways if way != "input") or ("weight",)
    found = [_fitted(way, weights, known, energy, how, alone.weight) for way in ways]
    if len(found) == 1 or known is None or not known.held_out:
        return found[0]
    return min(found, key=lambda branches: _error(weights, branches, known, alone))


def _fitted(
    way: str, weights: Sequence[torch.Tensor], known: Statistics | None, energy: np.ndarray | None, how: Branch,
    fmt: Scalar | None,
) -> list[Beside]:  # fmt: skip
    if way == "input" and known is not None:
        right, back = _of_input(weights, known, how)
        return [Beside(made := weight @ back, right, made, back=back) for weight in weights]
    pairs = [_of_weight(weight, energy, how, fmt, of_error=way == "error") for weight in weights]
    return [Beside(left, right, left) for left, right in pairs]


def _of_weight(
    weight: torch.Tensor, energy: np.ndarray | None, how: Branch, fmt: Scalar | None, *, of_error: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """``left`` and ``right`` of a weight, or of what rounding loses of it, each feature weighed by how loud it is."""
    import torch

    from qcompile.formats import fake_quantize
    from qcompile.transforms import svd_lowrank

    loud = torch.ones(weight.shape[1], device=weight.device)
    if energy is not None:
        loudness = torch.from_numpy(energy.copy()).float().to(weight.device)
        loud = (loudness / loudness.mean().clamp_min(1e-30)).clamp_min(_SILENT) ** (how.smooth / 2)

    def rounded(rest: torch.Tensor) -> torch.Tensor:
        return rest if fmt is None else fake_quantize(rest / loud, fmt) * loud

    found = svd_lowrank(weight * loud, rank_in(weight.shape, how), rounded, how.rounds, of_error=of_error)
    return found.left, found.right / loud


def _of_input(
    weights: Sequence[torch.Tensor], known: Statistics, how: Branch
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """``right`` and ``back``: the leading directions of the input, each feature weighed by how much of it is read."""
    import torch

    from qcompile.statistics.second_moment import moment_on

    device, dtype = weights[0].device, weights[0].dtype
    moment = moment_on(known.second_moment, device, torch.float64)
    read = torch.stack([weight.double().square().sum(0) for weight in weights]).sum(0)
    read = (read / read.mean().clamp_min(1e-30)).clamp_min(_SILENT).sqrt()
    vectors = torch.linalg.eigh(read[:, None] * moment * read).eigenvectors.flip(-1)
    vectors = vectors[:, : min(rank_in(weight.shape, how) for weight in weights)]
    vectors = vectors * torch.sign(torch.sign(vectors.sum(0)) + 0.5)  # LAPACK leaves the signs open
    return (vectors.T * read).to(dtype), (vectors / read[:, None]).to(dtype)


def _error(weights: Sequence[torch.Tensor], branches: Sequence[Beside], known: Statistics, alone: Scheme) -> float:
    """The relative errors of outputs on rows held out, summed up, with what is left of weights rounded to nearest."""
    import torch

    from qcompile.formats import fake_quantize, fake_quantize_rows
    from qcompile.statistics.collected import spread

    rows = spread(torch.cat([torch.from_numpy(part) for part in known.held_out]), _JUDGES).to(weights[0].device)
    total, activation = 0.0, alone.activation
    for weight, branch in zip(weights, branches, strict=True):
        rest, seen = branch.rest(weight), branch.seen(rows)
        read = seen if activation is None or activation.static else fake_quantize_rows(seen, activation)
        rounded = rest if alone.weight is None else fake_quantize(rest, alone.weight)
        lost = read @ rounded.T - seen @ rest.T
        total += float(lost.square().sum() / (rows @ weight.T).square().sum().clamp_min(1e-30))
    return total


def _without(known: Statistics, branch: Beside) -> Statistics:
    """Statistics of what is left of an input."""
    import numpy as np

    if branch.back is None:
        return known
    right, back = branch.right.cpu().numpy().astype(np.float64), branch.back.cpu().numpy().astype(np.float64)
    off = np.eye(len(back)) - back @ right

    def left_of(rows: np.ndarray) -> np.ndarray:
        return (rows @ off.T).astype(np.float32)

    return replace(
        known, second_moment=off @ np.asarray(known.second_moment, np.float64) @ off.T, sample=left_of(known.sample),
        held_out=[left_of(part) for part in known.held_out],
    )  # fmt: skip
