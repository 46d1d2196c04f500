"""Predicted errors: what a (scheme, transform) does to the output of a site, before anything is changed.

``t² = E‖x̂ Ŵᵀ - x Wᵀ‖² / E‖x Wᵀ‖²`` in the transformed basis, with the activation quantized if the scheme says so,
on a sample of rows. Without statistics the second moment is the identity and ``t² = ‖Ŵ - W‖² / ‖W‖²``.
Where it is known what errors cost, the loss is ``α t²`` of the weight's error and of the input's, each with its ``α``,
or better: these errors times gradients at the site's output.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from qcompile.analysis.matrices import weight_matrix
from qcompile.analysis.siblings import Siblings
from qcompile.choice.branch_fits import Fits
from qcompile.choice.probe import Probe, probe
from qcompile.choice.samples import Rows, Samples, rounded_by_place
from qcompile.formats import fake_quantize
from qcompile.formats.scalar import Scalar
from qcompile.statistics.sensitivity import EVEN, Curvature, Felt
from qcompile.targets.scheme import Scheme
from qcompile.threads import alone
from qcompile.transforms.widened import Widened

if TYPE_CHECKING:
    import torch

    from qcompile.choice.compensation import LastMoment
    from qcompile.formats import Format
    from qcompile.statistics.collected import Statistics
    from qcompile.transforms import Transform

__all__ = ["Probes", "probes_of", "site_error", "site_loss", "written_factor"]


def site_error(item: Probe, scheme: Scheme, transform: Transform | None = None) -> float:
    """``t²`` of one site under a scheme, with its input in the basis of ``transform``."""
    return _predicted(item, scheme, transform, EVEN)


def site_loss(item: Probe, scheme: Scheme, transform: Transform | None = None) -> float:
    """The predicted growth of the metric: errors of the weight and of the input, each times what it costs."""
    return _predicted(item, scheme, transform, item.curvature)


def _predicted(
    item: Probe, scheme: Scheme, transform: Transform | None, curvature: Curvature, rows: Rows | None = None
) -> float:
    if scheme.weight is None:
        return 0.0
    key = scheme.name, id(transform), curvature is EVEN
    of, error = item.known.get(key, (None, 0.0))
    if of is None or of() is not transform:  # another one may have been there
        with alone() if item.samples is None else nullcontext():  # of a few rows of the weight
            error = _error(
                item.under(scheme), scheme.weight, scheme.activation, rows or item.rows_in(transform), curvature
            )
        of = (lambda: None) if transform is None else weakref.ref(transform)
        item.known[key] = of, error
    return error


def _error(item: Probe, fmt: Scalar, activation: Format | None, rows: Rows, curvature: Curvature) -> float:
    transform = rows.transform
    if item.samples is None:
        weight = item.weight if transform is None else transform.dual().apply(item.weight, -1)
        lost = (fake_quantize(weight, fmt) - weight).square().sum(1)
        energy = (item.weight if item.beside is None else item.beside.whole(item.weight)).square().sum(1)
        if item.shares is not None and curvature is not EVEN:
            return curvature.weight * float((item.shares * lost).sum())
        return curvature.weight * float(lost.sum() / energy.sum().clamp_min(1e-30))
    if curvature.felt is not None and item.read is not None:
        return _felt(item, item.read(), curvature.felt, fmt, activation, transform)
    lost, energy = _energies(item, rows.of(item.samples.rows, activation), fmt, transform, curvature)
    return float(lost.sum() / energy.sum().clamp_min(1e-30))


def _felt(
    item: Probe, weight: torch.Tensor, felt: Felt, fmt: Scalar, activation: Format | None, transform: Transform | None
) -> float:
    """The growth of the metric by the errors that are really made, against gradients."""
    rows, back = felt.rows, item.back
    if transform is not None:
        dual = transform.dual()
        weight, back, rows = dual.apply(weight, -1), dual.apply(back, -1), transform.apply(rows, -1)
    change = fake_quantize(weight, fmt) - weight
    whole = item.beside is None  # beside a branch it is the rest of a weight, whose part says nothing of the output's
    left, part = _remaining(item, change, transform), _part(change, weight) if whole else 0.0
    exact, off, shrunk = (rows * back).sum(1), (felt.gradients * (rows @ change.T)).sum(1), part * left**0.5
    lost = item.curvature.coherence * left * float((off - part * exact).square().sum())
    if activation is not None:
        change = rounded_by_place(rows, activation, item.taps) - rows
        part = _part(change, rows) if whole else 0.0
        off, shrunk = (change * back).sum(1), shrunk + part
        lost += item.curvature.agreement * float((off - part * exact).square().sum())
    if item.beside is not None:
        lost += float((felt.gradients * item.beside.off(rows, transform, few=False)).sum(1).square().sum())
    return max(lost + item.curvature.shrink * shrunk**2, 0.0)


def _part(change: torch.Tensor, of: torch.Tensor) -> float:
    """The multiple of a tensor that a change of it is nearest to: below 0 where formats clip."""
    return float((change * of).sum() / of.square().sum().clamp_min(1e-30))


def _energies(
    item: Probe, read: tuple[torch.Tensor, torch.Tensor], fmt: Scalar, transform: Transform | None,
    curvature: Curvature,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The squares of what each row of the output loses, times its cost, and of what it has: two of ``[rows]``.

    Args:
        read: the rows in the basis of the transform, and what the site sees of them.
    """
    rows, seen = read
    weight = item.weight if transform is None else transform.dual().apply(item.weight, -1)
    rounded = fake_quantize(weight, fmt)
    exact = rows @ weight.T
    energy = exact.square().sum(1) if item.beside is None else item.beside.energy(rows, exact, transform)
    left = _remaining(item, rounded - weight, transform)
    if left == 1 and (seen is rows or curvature.weight == curvature.input):
        lost = curvature.weight * (seen @ rounded.T - exact).square().sum(1)
    else:
        lost = curvature.weight * left * (rows @ (rounded - weight).T).square().sum(1)
        if seen is not rows:
            lost = lost + curvature.input * ((seen - rows) @ weight.T).square().sum(1)
    if item.beside is not None:
        lost = lost + curvature.weight * item.beside.off(rows, transform).square().sum(1)
    return lost, energy


def _remaining(item: Probe, change: torch.Tensor, transform: Transform | None) -> float:
    """The part of the error of a weight, changed by ``[out, in]``, that learned rounding leaves."""
    learned = None if item.samples is None else item.samples.learned
    return 1.0 if learned is None else learned.remaining(change.square().sum(0), transform)


def _held_out_losses(item: Probe, scheme: Scheme, rows: Rows) -> np.ndarray:
    """``site_loss`` on the sequences that were held out, each one's share: ``[sequences]``."""
    item = item.under(scheme)
    held_out = None if item.samples is None else item.samples.held_out
    if scheme.weight is None or held_out is None:
        return np.zeros(0 if held_out is None else len(held_out.lengths))
    learned = None if item.samples is None else item.samples.rows
    read = rows.of(held_out.rows, scheme.activation, learned)
    lost, energy = _energies(item, read, scheme.weight, rows.transform, item.curvature)
    shares = (lost / energy.sum().clamp_min(1e-30)).split(list(held_out.lengths))
    return np.array([float(share.sum()) for share in shares])


def written_factor(item: Probe, scheme: Scheme, out: Transform) -> float:
    """How many times as much a site's output loses by its weight if it is written in another basis, and read back."""
    if scheme.weight is None or item.read is None or item.samples is None:
        return 1.0
    weight, rows = item.read(), item.samples.rows

    def lost(change: torch.Tensor) -> float:
        return float((rows @ change.T).square().sum())

    turned = out.apply(weight, 0)
    back = out.inverse().apply(fake_quantize(turned, scheme.weight) - turned, 0)
    return lost(back) / max(lost(fake_quantize(weight, scheme.weight) - weight), 1e-30)


@dataclass(frozen=True, eq=False)
class Probes:
    """The basis of predictions for siblings: a probe of each site. Schemes are those of all sites, or one for each."""

    items: tuple[Probe, ...]

    @property
    def device(self) -> str:
        """Where predictions are computed."""
        return self.items[0].weight.device.type

    @property
    def nearest(self) -> Probes:
        """The same for weights that are rounded to nearest, whatever becomes of them otherwise."""
        return Probes(tuple(item.nearest for item in self.items))

    @property
    def felt(self) -> tuple[Felt, ...]:
        """By what errors of each site are weighed; nothing where that is not known of all."""
        found = tuple(item.curvature.felt for item in self.items if item.curvature.felt is not None)
        return found if len(found) == len(self.items) else ()

    def error(self, schemes: Scheme | Sequence[Scheme], transform: Transform | None = None) -> float:
        """The predicted growth of the metric, of all sites, with their input in the basis of ``transform``."""
        rows = self.items[0].rows_in(transform)
        return sum(_predicted(item, scheme, transform, item.curvature, rows) for item, scheme in self._each(schemes))

    def screen(self, schemes: Scheme | Sequence[Scheme], transform: Transform | None = None) -> float:
        """A cheap estimate of ``error``, on few rows: good enough to leave out what is far from the best."""
        rows = self.items[0].rows_in(transform)
        return sum(
            _error(thin, scheme.weight, scheme.activation, rows, thin.curvature)
            for thin, scheme in ((item.under(scheme).thin, scheme) for item, scheme in self._each(schemes))
            if scheme.weight is not None
        )

    def held_out(self, schemes: Scheme | Sequence[Scheme], transform: Transform | None = None) -> np.ndarray:
        """``error`` on the sequences that nothing was fitted on, each one's share: ``[sequences]``."""
        rows = self.items[0].rows_in(transform)
        return np.asarray(sum(_held_out_losses(item, scheme, rows) for item, scheme in self._each(schemes)))

    def _each(self, schemes: Scheme | Sequence[Scheme]) -> Iterable[tuple[Probe, Scheme]]:
        return zip(self.items, [schemes] * len(self.items) if isinstance(schemes, Scheme) else schemes, strict=True)


def probes_of(
    group: Siblings, statistics: Statistics | None = None, curvatures: Mapping[str, Curvature] | None = None, *,
    learned: LastMoment | None = None, device: str = "cpu",
) -> Probes:  # fmt: skip
    """Probes of siblings.

    Args:
        statistics: of the value that they read; the identity without.
        curvatures: what errors cost, by site name; without them all alike.
        learned: has the moments, if weights will be rounded by GPTQ on these statistics.
        device: where predictions are computed.
    """
    known = curvatures or {}
    samples = None if statistics is None else Samples.of(statistics, learned, device)
    fits = Fits([partial(weight_matrix, site, device=device) for site in group.sites], statistics)
    items = (probe(site, samples, known.get(site.name, EVEN), device, fits, i) for i, site in enumerate(group.sites))
    if group.patches is None:
        return Probes(tuple(items))
    widened = Widened(0 if group.grouped else group.taps)  # of groups the moment is that of none in particular
    return Probes(tuple(replace(item, taps=group.taps, widened=widened) for item in items))
