"""A few rows of a site's weight and of its input, on which predictions are computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from qcompile.analysis.matrices import weight_matrix
from qcompile.choice.branch_fits import Beside, Fits
from qcompile.choice.branches import Apart
from qcompile.choice.samples import Rows, Samples
from qcompile.statistics.collected import spread
from qcompile.statistics.sensitivity import EVEN, Curvature, Felt
from qcompile.transforms.widened import Widened

if TYPE_CHECKING:
    import torch

    from qcompile.analysis.spaces import Site
    from qcompile.targets.scheme import Scheme
    from qcompile.transforms import Transform

__all__ = ["Probe", "probe"]

#: Rows of the weight and of the sample that a prediction looks at; fewer where only the weight counts.
ROWS = 256
WEIGHT_ROWS = 32


@dataclass(frozen=True, eq=False)
class Probe:
    """A few rows of a site's weight and of its input: what predictions are computed on."""

    weight: torch.Tensor  # [rows, in]
    samples: Samples | None
    curvature: Curvature = EVEN
    read: Callable[[], torch.Tensor] | None = None  # the whole weight, where errors are felt
    shares: torch.Tensor | None = None  # [rows] of a table: how much each adds to the loss, per energy of a mean row
    fits: Fits | None = None  # branches of the siblings
    place: int = 0  # among them
    beside: Beside | None = None  # a branch that was taken out of the weight, or of the input
    taps: int = 1  # places that a row of the input covers
    widened: Widened = Widened()  # makes of a transform of the value that of a row
    known: dict[tuple[str, int, bool], tuple[Any, float]] = field(default_factory=dict, repr=False)  # by ``_predicted``
    parts: dict[str, Probe] = field(default_factory=dict, repr=False)  # by ``under``

    @cached_property
    def thin(self) -> Probe:
        """A probe of few of the rows; it weighs errors by their size alone."""
        few = None if self.samples is None else self.samples.thin
        blunt = replace(self.curvature, felt=None, shares=None)
        beside = None if self.beside is None else self.beside.spread(WEIGHT_ROWS)
        return Probe(
            spread(self.weight, WEIGHT_ROWS).contiguous(), few, curvature=blunt, beside=beside, taps=self.taps,
            widened=self.widened,
        )  # fmt: skip

    @cached_property
    def back(self) -> torch.Tensor:
        """The gradients that are felt at the output, as they come back to the input: ``[rows, in]``."""
        felt, read = self.curvature.felt, self.read
        assert felt is not None, "nothing is felt here"
        assert read is not None, "what is felt has a weight"
        return felt.gradients @ read()

    @property
    def nearest(self) -> Probe:
        """A probe that makes up for no error of rounding."""
        samples = None if self.samples is None else replace(self.samples, learned=None)
        return replace(self, samples=samples, known={}, parts={})

    def rows_in(self, transform: Transform | None) -> Rows:
        """Rows of the input in the basis of a transform of the value."""
        return Rows(transform, self.widened, self.taps)

    def under(self, scheme: Scheme) -> Probe:
        """The probe of what a scheme rounds: the weight and the input, or the rest that a branch leaves of either."""
        if not isinstance(scheme, Apart) or self.read is None or self.fits is None:
            return self
        if scheme.name not in self.parts:
            beside, count = self.fits.of(scheme)[self.place], len(self.weight)
            rest = beside.rest(self.read())
            part = replace(
                self, weight=spread(rest, count).contiguous(), read=lambda: rest, known={}, parts={},
                beside=beside.spread(count),
            )  # fmt: skip
            self.parts[scheme.name] = (
                part if beside.back is None else part._reading(beside.spread(count), self.fits, scheme)
            )
        return self.parts[scheme.name]

    def _reading(self, beside: Beside, fits: Fits, scheme: Apart) -> Probe:
        """The probe of a site that reads what a branch leaves of its input."""
        samples, curvature = fits.samples(scheme, self.samples), self.curvature
        if self.samples is None or samples is None:
            return self
        if curvature.felt is not None:
            felt = Felt(beside.seen(curvature.felt.rows), curvature.felt.gradients)
            curvature = replace(curvature, felt=felt)
        whole, left = ((rows @ self.weight.T).square().sum() for rows in (self.samples.rows, samples.rows))
        share = float(whole / left.clamp_min(1e-30))
        return replace(self, samples=samples, curvature=curvature, beside=replace(beside, share=share))


def probe(
    site: Site, samples: Samples | None, curvature: Curvature = EVEN, device: str = "cpu",
    fits: Fits | None = None, place: int = 0,
) -> Probe:  # fmt: skip
    """Rows spread evenly over the weight's outputs, and those of the input; of a table those whose errors cost most."""
    import torch

    if curvature.shares is not None:
        shares = torch.from_numpy(curvature.shares).to(device)
        most = shares.topk(min(ROWS, len(shares)))
        table = weight_matrix(site, device=device)
        costs = most.values / most.values.sum().clamp_min(1e-30) / table.square().sum(1).mean().clamp_min(1e-30)
        return Probe(table[most.indices], None, curvature=curvature, shares=costs)
    weight = weight_matrix(site, WEIGHT_ROWS if samples is None else ROWS, device).contiguous()
    read = partial(weight_matrix, site, device=device)
    if samples is None:
        return Probe(weight, None, curvature, read)
    if curvature.felt is not None:
        felt = Felt(curvature.felt.rows.to(device), curvature.felt.gradients.to(device))
        curvature = replace(curvature, felt=felt)
    return Probe(weight, samples, curvature, read, fits=fits, place=place)
