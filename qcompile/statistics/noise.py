"""How much a model minds errors at a site, from noise in its weight (the linearity theorem, arXiv:2411.17525)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import onnx_ir as ir

from qcompile.analysis.matrices import weight_matrix
from qcompile.analysis.siblings import input_name
from qcompile.analysis.spaces import Site
from qcompile.group.group import ALONE, Group
from qcompile.run.data import Data
from qcompile.statistics.kept_statistics import kept_noise
from qcompile.statistics.sensitivity import Curvature, sensitivities
from qcompile.work import Work

if TYPE_CHECKING:
    from qcompile.notes import Progress
    from qcompile.statistics.collected import Statistics

__all__ = ["noise_curvatures"]


def noise_curvatures(
    model: ir.Model, sites: Sequence[Site], statistics: Mapping[str, Statistics], data: Data, seed: int = 0,
    progress: Progress | None = None, work: Work | None = None, group: Group = ALONE,
) -> dict[str, Curvature]:  # fmt: skip
    """The curvature at every site by its name: the same for errors of its weight and of its input.

    Args:
        statistics: of what sites read, by name, which turn errors of a weight into errors of its output.
        work: about this graph and this data.
        group: the processes that share the weights.
    """
    measure = partial(sensitivities, model, sites, data, seed=seed, progress=progress, group=group)
    noise, found = kept_noise(work or Work(), sites, seed, measure), {}
    for site in sites:
        own = None if site.input is None else statistics.get(input_name(site))
        alpha = noise[site.name] / (1.0 if own is None else _unit(site, own))
        found[site.name] = Curvature(alpha, 0.0 if site.input is None else alpha, 1.0)
    return found


def _unit(site: Site, own: Statistics) -> float:
    """The squared error of a site's output, relative to its energy, for noise in the weight of the weight's energy."""
    import torch

    weight, x = weight_matrix(site), torch.from_numpy(own.sample)
    energy = float((x @ weight.T).square().sum())
    return float(weight.square().sum()) * float(x.square().sum()) / weight.shape[1] / max(energy, 1e-30)
