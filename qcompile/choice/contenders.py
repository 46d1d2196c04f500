"""The transforms that compete in front of the sites that read one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompile.choice.candidates import ALPHAS, orthogonal_candidates, wush_candidates

if TYPE_CHECKING:
    from qcompile.choice.fits import Fit
    from qcompile.targets.scheme import Scheme
    from qcompile.transforms import Transform

__all__ = ["Contender", "contenders", "diagonals"]


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


def contenders(
    width: int, scheme: Scheme, fit: Fit | None, seed: int, *, behind: bool, able: bool, mixed: bool
) -> dict[str, Contender]:
    """All that competes, by name.

    Args:
        fit: the moments of the input as it comes, if anything may be fitted.
        behind: whether a norm can take over a diagonal.
        able: whether a transform can stay in the graph.
        mixed: whether the input is in another basis already, or nothing is wanted but what is fitted.
    """
    scales: Mapping[str, Transform] = diagonals(fit) if fit is not None and behind else {}
    made = {name: Contender(scale, None, fitted=True) for name, scale in scales.items()}
    if not able:
        return made
    for name, item in ({} if mixed else orthogonal_candidates(width, scheme, "auto", seed)).items():
        made[name] = Contender(None, item, fitted=False)
        made |= {f"{first}, {name}": Contender(scale, item, fitted=True) for first, scale in scales.items()}
    if fit is not None:
        made |= {name: Contender(None, item, fitted=True) for name, item in wush_candidates(fit, scheme).items()}
    return made


def diagonals(fit: Fit) -> dict[str, Transform]:
    """Diagonals that move loudness from inputs to weights, by name."""
    from qcompile.transforms import smoothing

    return {name: smoothing(*fit.diagonals, alpha) for name, alpha in ALPHAS.items()}
