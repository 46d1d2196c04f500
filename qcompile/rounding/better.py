"""Weights that methods learn, where they err less than plain ones on sequences that they have not seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from qcompile.analysis.spaces import Site
from qcompile.analysis.stacks import rows_of
from qcompile.formats import Quantized
from qcompile.notes import OF_EACH
from qcompile.rounding.kept_rounding import Notes
from qcompile.rounding.methods import Method
from qcompile.rounding.moments import InputMoments
from qcompile.statistics.evidence import errs_less

if TYPE_CHECKING:
    import torch

__all__ = ["better", "better_experts"]


def better(
    notes: Notes, site: Site, weight: torch.Tensor, plain: Quantized, moments: InputMoments, way: Method,
    tensor_scale: torch.Tensor | None = None, fitting: Callable[[Quantized], Quantized] = lambda made: made,
) -> Quantized:  # fmt: skip
    """The weight that a method learns, unless the plain one errs as little on sequences that it has not seen.

    Args:
        fitting: makes of what was learned what the target can compute.
    """
    usual = way.least_damping
    if usual is not None and (damping := moments.factor(usual).damping) > 1.1 * usual:
        reason = f"its inputs needed a damping of {damping:.2g}"
        notes.decline(site.name, f"the usual damping of {way.title}", reason)
    fitted = fitting(way.learned(weight, plain.format, moments, tensor_scale))
    ours, theirs = (moments.errors(weight, rounded)[way.judges] for rounded in (fitted, plain))
    made, other = way.sides
    notes.notes.setdefault("held_out", {})[site.name] = {made: float(ours.sum()), other: float(theirs.sum())}
    if errs_less(ours, theirs):
        return fitted
    if len(ours) < 2:
        reason = f"{len(ours)} of the sequences that were held out reach it, by which it cannot be judged"
    else:
        reason = f"on {len(ours)} sequences that it had not seen, it does not clearly err less than '{other}'"
        reason += f": {ours.sum():.3g} against {theirs.sum():.3g}"
    notes.decline(site.name, way.title, reason)
    return plain


def better_experts(
    notes: Notes, site: Site, weight: torch.Tensor, plain: Quantized, matrices: np.ndarray,
    moments: Callable[[int], InputMoments | None], way: Method,
) -> Quantized:  # fmt: skip
    """Learn each matrix of a stack whose own rows suffice and say that this errs less on those held out.

    Args:
        matrices: the rows of the weight that are each one's.
        moments: of the rows that each one saw, if it saw any.
    """
    result = replace(plain, codes=plain.codes.clone(), scales=plain.scales.clone(),
                     zero_points=None if plain.zero_points is None else plain.zero_points.clone())  # fmt: skip
    count, short, worse = len(matrices), 0, 0
    errors: list[dict[str, float]] = []
    for expert, places in enumerate(matrices):
        own = moments(expert)
        if own is None or own.unusable is not None:
            short += 1
            continue
        near = rows_of(plain, places)
        shared = near.tensor_scale if near.format.tensor_scale is not None else None  # one for the whole stack
        learned = way.learned(weight[places], near.format, own, shared)
        ours, theirs = (own.errors(weight[places], rounded)[way.judges] for rounded in (learned, near))
        errors.append(dict(zip(way.sides, (float(ours.sum()), float(theirs.sum())), strict=True)))
        if errs_less(ours, theirs):
            _put_rows(result, places, learned)
        else:
            worse += 1
    if errors:
        means = {word: float(np.mean([own[word] for own in errors])) for word in errors[0]}
        notes.notes.setdefault("held_out", {})[site.name] = means
    if short:
        reason = f"{short} of its {count} matrices see too few rows of calibration data for their {weight.shape[1]}"
        notes.decline(site.name, way.title + OF_EACH, f"{reason} features, and are {way.otherwise}")
    if worse:
        reason = f"on sequences that it had not seen, it does not clearly err less than '{way.sides[1]}'"
        notes.decline(site.name, way.title + OF_EACH, f"{reason} for {worse} of its {count} matrices")
    return result


def _put_rows(q: Quantized, places: np.ndarray, rows: Quantized) -> None:
    q.codes[places], q.scales[places] = rows.codes, rows.scales
    if q.zero_points is not None and rows.zero_points is not None:
        q.zero_points[places] = rows.zero_points
