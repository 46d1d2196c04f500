"""The ways to measure what errors cost, by name: each leads formats to where a model minds them least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from qcompile.analysis.spaces import Site
from qcompile.errors import InputError, unknown
from qcompile.group.group import ALONE, Group
from qcompile.run.data import Data
from qcompile.work import Work

if TYPE_CHECKING:
    from qcompile.notes import Decline, Progress
    from qcompile.statistics.collected import Statistics
    from qcompile.statistics.sensitivity import Curvature, Felt

__all__ = ["MEASURES", "check_measure", "largest_share", "measured"]

#: By name, the first by default.
MEASURES = {
    "errors": "the errors that formats make at a site, against gradients at its output",
    "traces": "the size of errors of weights and of inputs, times the mean trace of the Fisher information (HAWQ-V2)",
    "eigenvalues": "the same with the largest eigenvalue for weights, as a few rows show it (HAWQ)",
    "noise": "the size of errors, times what noise in the weight does to the output (the linearity theorem)",
    "even": "errors relative to the output of each site, all alike: the quotients of signal and noise",
}


def check_measure(word: str) -> None:
    """Refuse a way that is not there.

    Raises:
        InputError: if it is not.
    """
    if word not in MEASURES:
        raise InputError(unknown("sensitivity", word, MEASURES))


def measured(
    how: str, model: ir.Model, sites: Sequence[Site], statistics: Mapping[str, Statistics], data: Data,
    decline: Decline, *, seed: int = 0, device: str = "cpu", progress: Progress | None = None, work: Work | None = None,
    group: Group = ALONE, noise: bool = True,
) -> dict[str, Curvature]:  # fmt: skip
    """The cost of errors by the name of the site; nothing where all count alike, in no unit of the metric.

    Args:
        how: one of ``MEASURES``.
        statistics, decline, work, group, noise: as for ``measure_curvatures``.
    """
    from qcompile.statistics.curvature import measure_curvatures  # need torch
    from qcompile.statistics.noise import noise_curvatures

    check_measure(how)
    if how == "even":
        return {}
    if how == "noise":
        return noise_curvatures(model, sites, statistics, data, seed, progress, work, group)
    found = measure_curvatures(model, sites, statistics, data, decline, seed, device, progress, work, group, noise)
    if how == "errors":
        return found
    even = {name: replace(own, felt=None) for name, own in found.items()}
    if how == "traces":
        return even
    return {name: replace(even[name], weight=own.weight * largest_share(own.felt)) for name, own in found.items()}


def largest_share(felt: Felt | None) -> float:
    """The largest eigenvalue of the Fisher information of a weight, over its trace; 1 where no rows are known.

    Rows ``x`` with gradients ``g`` make it ``Σ (g ⊗ x)(g ⊗ x)ᵀ``, whose eigenvalues are those of all products of two
    rows (HAWQ, arXiv:1905.03696, finds it by power iteration). Few rows make it larger than it is.
    """
    import torch

    if felt is None:
        return 1.0
    products = (felt.gradients @ felt.gradients.T * (felt.rows @ felt.rows.T)).double()
    return float(torch.linalg.eigvalsh(products)[-1] / products.trace().clamp_min(1e-300))
