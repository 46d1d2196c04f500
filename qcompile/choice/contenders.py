"""The transforms that compete in front of the sites that read one value."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qcompile.choice.candidates import ALPHAS, orthogonal_candidates, shared_candidates, wush_candidates
from qcompile.choice.placement import Worth, joined

if TYPE_CHECKING:
    from qcompile.analysis.siblings import Siblings
    from qcompile.choice.fits import Fit
    from qcompile.targets.scheme import Scheme
    from qcompile.transforms import Transform

__all__ = ["Contender", "OnlineChoice", "Tried", "contenders", "diagonals"]


@dataclass(frozen=True)
class Contender:
    """A transform that competes.

    Args:
        behind: a diagonal that a norm takes over.
        transform: what stays in the graph then.
        fitted: whether it is made from calibration data.
    """

    behind: Transform | None
    transform: Transform | None
    fitted: bool


@dataclass(frozen=True)
class OnlineChoice:
    """The best transform in front of the sites of a group.

    Args:
        transform: ``None`` for nothing.
        cost: the error that remains and the price that is paid; with forced transforms their number.
        errors: of each candidate relative to none, for the report.
        skipped: why there is none although one was asked for.
        unproven: why it is none of those that were fitted to data, although one promised more.
        behind: a diagonal that the norm which writes the value takes over, in front of ``transform``.
        name: of the candidate that was chosen.
        costs: of each candidate that was measured.
    """

    transform: Transform | None
    cost: float
    errors: Mapping[str, float] = field(default_factory=dict)
    skipped: str | None = None
    unproven: str | None = None
    behind: Transform | None = None
    name: str = "none"
    costs: Mapping[str, float] = field(default_factory=dict)

    @property
    def worth(self) -> Worth | None:
        """The cost of the candidate that was chosen, and of the next best; ``None`` without another."""
        return Worth.of(self.costs, self.name)

    def after(self, offline: Transform | None) -> Transform | None:
        """The transform of the input: what folds, then this."""
        return joined(offline, self.behind, self.transform)


@dataclass
class Tried:
    """Candidates that were made and measured, so that they need not be again.

    Args:
        made: contenders by group and all that they depend on.
        screens: the same, with the error of each by a few rows.
    """

    made: dict[tuple[object, ...], dict[str, Contender]] = field(default_factory=dict)
    screens: dict[tuple[object, ...], tuple[dict[str, Contender], dict[str, float]]] = field(default_factory=dict)
    _joined: dict[tuple[Transform | None, ...], Transform | None] = field(default_factory=dict)

    def after(self, offline: Transform | None, item: Contender) -> Transform | None:
        """One object for what folds and a candidate behind it, by which what is known of it is found again."""
        key = offline, item.behind, item.transform
        if key not in self._joined:
            self._joined[key] = joined(*key)
        return self._joined[key]

    def forget(self, groups: Collection[Siblings]) -> None:
        """Drop what was made for groups."""
        self.made = {key: found for key, found in self.made.items() if key[0] not in groups}
        self.screens = {key: found for key, found in self.screens.items() if key[0] not in groups}
        self._joined.clear()


def contenders(
    width: int, scheme: Scheme, fit: Fit | None, seed: int, *, behind: bool, able: bool, mixed: bool,
    shared: bool = False, few: bool = False,
) -> dict[str, Contender]:  # fmt: skip
    """All that competes, by name.

    Args:
        fit: the moments of the input as it comes, if anything may be fitted.
        behind: whether a norm can take over a diagonal.
        able: whether a transform can stay in the graph.
        mixed: whether the input is in another basis already, or nothing is wanted but what is fitted.
        shared: whether what stays must have one matrix for all blocks.
        few: whether of the closed form blocks of one size are enough.
    """
    scales: Mapping[str, Transform] = diagonals(fit) if fit is not None and behind else {}
    made = {name: Contender(scale, None, fitted=True) for name, scale in scales.items()}
    if not able:
        return made
    for name, item in ({} if mixed else orthogonal_candidates(width, scheme, "auto", seed)).items():
        made[name] = Contender(None, item, fitted=False)
        made |= {f"{first}, {name}": Contender(scale, item, fitted=True) for first, scale in scales.items()}
    if fit is not None:
        fitted = shared_candidates(fit, scheme) if shared else wush_candidates(fit, scheme, one=few)
        made |= {name: Contender(None, item, fitted=True) for name, item in fitted.items()}
    return made


def diagonals(fit: Fit) -> dict[str, Transform]:
    """Diagonals that move loudness from inputs to weights, by name."""
    from qcompile.transforms import smoothing

    return {name: smoothing(*fit.diagonals, alpha) for name, alpha in ALPHAS.items()}
