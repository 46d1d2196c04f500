"""The time that a choice is predicted to take, and what a second was worth to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qcompile.ir.tensors import EAGER_BYTES, total_bytes
from qcompile.prices.graph_clock import GraphClock
from qcompile.prices.profile_files import profile_of
from qcompile.run.input_shapes import in_sizes
from qcompile.targets.scheme import FLOAT

if TYPE_CHECKING:
    from qcompile.analysis.siblings import Siblings
    from qcompile.analysis.spaces import Analysis
    from qcompile.choice.export_options import Options
    from qcompile.choice.placement import Placement
    from qcompile.notes import Decline
    from qcompile.run.data import Data
    from qcompile.targets.scheme import Scheme
    from qcompile.targets.target import Target

__all__ = ["Timing", "clock_of", "timing_of"]


@dataclass(frozen=True)
class Timing:
    """Seconds of one run, as they were predicted.

    Args:
        clock: that predicts them.
        products: of all sites in their schemes.
        transforms: of online transforms, by the value in front of whose readers they stand.
        float_products: of all sites as they came.
        rate: the loss that a second was worth; ``None`` where transforms were not chosen by it.
    """

    clock: GraphClock
    products: float
    transforms: Mapping[str, float]
    float_products: float
    rate: float | None

    @property
    def whole(self) -> float:
        """Seconds of the whole graph."""
        return self.clock.rest + self.products + math.fsum(self.transforms.values())


def clock_of(
    analysis: Analysis, target: Target, options: Options, data: Data, decline: Decline
) -> GraphClock | None:  # fmt: skip
    """The clock of a graph at the sizes that were asked for, ``None`` for a target whose times nobody measured.

    Raises:
        InputError: if no input has a dimension of a name that was given, or the profile does not fit.
    """
    profile = profile_of(target, options.profile)
    inputs = in_sizes(data.batches[0], analysis.model, options.shape)
    if profile is None:
        return None
    if not all(isinstance(array, np.ndarray) for array in inputs.values()):
        decline(
            "*", "predicting its time", "its inputs are sequences: transforms are priced by their share of arithmetic"
        )
        return None
    if total_bytes(analysis.model) >= EAGER_BYTES:
        said = "it is too large to be run at once: online transforms are priced by their share of arithmetic"
        decline("*", "predicting its time", said)
        return None
    return GraphClock.of(profile, analysis.model, analysis.sites, inputs)


def timing_of(
    clock: GraphClock, groups: Sequence[Siblings], schemes: Mapping[str, Scheme], placement: Placement
) -> Timing:  # fmt: skip
    """The time of a graph as it was chosen.

    Args:
        groups: all its sites that read anything, by what they read.
        schemes: by site name; the others stay float.
    """
    quantized = (clock.products((site, schemes.get(site.name, FLOAT)) for site in own.sites) for own in groups)
    transforms = {own.name: clock.transform(own, t) for own in groups if (t := placement.online.get(own.name))}
    for name, (transform, _) in placement.boundaries.items():
        alike = (group for group in groups if group.width == transform.size)
        transforms[name] = clock.transform(next(alike, groups[0]), transform)
    rate = placement.rate
    return Timing(clock, math.fsum(quantized), transforms, clock.float_sites(groups), rate)
