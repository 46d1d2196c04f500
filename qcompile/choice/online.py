"""The transforms that stay in the graph: the best one in front of the sites that read a value, given what folds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qcompile.analysis.axes import AxisNode
from qcompile.analysis.folding import axis_transform
from qcompile.analysis.infinity import infinity
from qcompile.analysis.siblings import Siblings, cost_fraction, shared_table
from qcompile.analysis.spaces import Analysis
from qcompile.choice.candidates import FITTED_BLOCKS, LEAST_GAIN, fitted, not_worth, orthogonal_candidates
from qcompile.choice.scoring import Probes
from qcompile.errors import InputError
from qcompile.statistics.evidence import errs_less
from qcompile.targets.scheme import Scheme
from qcompile.transforms.composite import compose

if TYPE_CHECKING:
    from qcompile.statistics.calibration import Statistics
    from qcompile.transforms import Transform

__all__ = ["FORCED", "Online", "OnlineChoice", "able"]

#: Kinds of transforms that are not compared with doing nothing.
FORCED = ("hadamard", "block")


@dataclass(frozen=True)
class OnlineChoice:
    """The best transform in front of the sites of a group.

    Args:
        transform: ``None`` for nothing.
        cost: the error that remains and the price that is paid; with forced transforms their number.
        errors: of each candidate relative to none, for the report.
        skipped: why there is none although one was asked for.
        unproven: why it is none of those that were fitted to data, although one promised more.
    """

    transform: Transform | None
    cost: float
    errors: Mapping[str, float] = field(default_factory=dict)
    skipped: str | None = None
    unproven: str | None = None


@dataclass
class Online:
    """Chooses for each group; ``place`` documents the parameters."""

    analysis: Analysis
    probes: Mapping[Siblings, Probes]
    scheme: Callable[[Siblings], Scheme]
    kind: str
    statistics: Mapping[str, Statistics]
    price: float
    seed: int
    barred: set[Siblings]  # groups with a weight that is read in another basis too
    fits: bool = True  # what is fitted must then hold on sequences that were held out
    own: Mapping[Siblings, str] = field(default_factory=dict)  # kinds of single groups
    _known: dict[tuple[object, ...], OnlineChoice] = field(default_factory=dict)

    @property
    def forced(self) -> bool:
        """Whether every site is to see another basis, at whatever price."""
        return self.kind in FORCED

    def kind_of(self, group: Siblings) -> str:
        """The kind for a group."""
        return self.own.get(group, self.kind)

    def kind_for(self, readers: Sequence[Siblings], what: str) -> str:
        """The kind for a space: that of the readers which have one of their own.

        Raises:
            InputError: if these differ.
        """
        found = {self.own[group]: group for group in readers if group in self.own}
        if len(found) > 1:
            said = " and ".join(f"{kind} for what reads '{group.name}'" for kind, group in found.items())
            raise InputError(f"--transform-for gives {said}, which share {what} and so its transform")
        return next(iter(found), self.kind)

    def best(self, group: Siblings, chosen: Mapping[AxisNode, Transform]) -> OnlineChoice:
        """The choice for a group, where those spaces change basis."""
        axes, table = self.analysis.axes, shared_table(group)
        refs = [group.ref] if table is None else [group.ref, self.analysis.refs(table)[1]]
        key = group, *(chosen.get(leaf.node) for ref in refs for leaf in axes.leaves(ref))
        if key not in self._known:
            offline, *others = (axis_transform(axes, ref, chosen) for ref in refs)
            if others and (offline is None or offline is others[0]):  # or they part
                self._known[key] = self._as_table(group, offline, others[0])
            else:
                self._known[key] = self._chosen(group, offline)
        return self._known[key]

    def _chosen(self, group: Siblings, offline: Transform | None) -> OnlineChoice:
        return self._forced(group, offline) if self.kind_of(group) in FORCED else self._by_error(group, offline)

    def _as_table(self, group: Siblings, offline: Transform | None, transform: Transform | None) -> OnlineChoice:
        """The transform of a table's rows for the head that shares them, unless it comes to its input offline."""
        forced = self.kind_of(group) in FORCED
        if transform is offline or transform is None or not (transform.orthogonal and self._able(group)):
            return OnlineChoice(None, 0.0 if forced else self.probes[group].error(self.scheme(group), offline))
        if forced:
            return OnlineChoice(transform, 1.0)
        error = self.probes[group].error(self.scheme(group), transform)
        return OnlineChoice(transform, error * (1 + self.price * cost_fraction(group, transform)))

    def _able(self, group: Siblings) -> bool:
        return group not in self.barred and able(self.analysis, group)

    def _forced(self, group: Siblings, offline: Transform | None) -> OnlineChoice:
        if offline is not None:
            return OnlineChoice(None, 0.0)
        if not self._able(group):
            return OnlineChoice(None, 1.0, skipped=infinity(self.analysis, group.value, group.ref))
        found = list(orthogonal_candidates(group.width, self.scheme(group), self.kind_of(group), self.seed).values())
        reason = not_worth(group.value, group.sites) if found else None
        return OnlineChoice(found[-1] if found and reason is None else None, 1.0, skipped=reason)

    def _by_error(self, group: Siblings, offline: Transform | None) -> OnlineChoice:
        scheme, kind = self.scheme(group), self.kind_of(group)
        base = self.probes[group].error(scheme, offline)
        if scheme.weight is None or kind == "none" or not self._able(group):
            return OnlineChoice(None, base)
        best, least, errors = None, base, {"none": 1.0}
        for name, transform in self._unfitted(group, scheme, offline).items():
            error = self.probes[group].error(scheme, _total(offline, transform))
            errors[name] = error / base if base else 1.0
            cost = self._cost(group, transform, error, base)
            if cost < least:
                best, least = transform, cost
        return self._by_evidence(group, scheme, offline, OnlineChoice(best, least, errors), base)

    def _by_evidence(
        self, group: Siblings, scheme: Scheme, offline: Transform | None, unfitted: OnlineChoice, base: float
    ) -> OnlineChoice:
        """A fitted transform instead, where it clearly errs less on sequences that it was not fitted on."""
        made, errors = self._fitted(group, scheme, offline), dict(unfitted.errors)
        if not made:
            return unfitted
        probes, found, unproven = self.probes[group], unfitted, None
        shares = probes.held_out(scheme, _total(offline, unfitted.transform))
        plain = probes.held_out(scheme, offline).sum()
        for name, transform in made.items():
            if self.fits:
                own = probes.held_out(scheme, _total(offline, transform))
                error = base * float(own.sum() / plain) if plain > 0 else base
            else:
                error = probes.error(scheme, _total(offline, transform))
            errors[name] = error / base if base else 1.0
            cost = self._cost(group, transform, error, base)
            wanted = cost < found.cost or (self.kind_of(group) == "wush" and found.transform is None)
            if wanted and self.fits and not errs_less(own, shares):
                unproven = f"on {len(own)} sequences that it had not seen, {name} does not clearly err less"
            elif wanted:
                found = replace(found, transform=transform, cost=cost)
        return replace(found, errors=errors, unproven=unproven if found is unfitted else None)

    def _cost(self, group: Siblings, transform: Transform, error: float, base: float) -> float:
        return error * (1 + self.price * cost_fraction(group, transform)) + LEAST_GAIN * base

    def _unfitted(self, group: Siblings, scheme: Scheme, offline: Transform | None) -> dict[str, Transform]:
        plain = self.kind_of(group) != "wush" and offline is None
        return orthogonal_candidates(group.width, scheme, "auto", self.seed) if plain else {}

    def _fitted(self, group: Siblings, scheme: Scheme, offline: Transform | None) -> dict[str, Transform]:
        own, least = self.statistics.get(group.name), scheme.group or group.width
        if own is None or not (self.fits or self.kind_of(group) == "wush"):
            return {}
        blocks = [block for block in FITTED_BLOCKS if block >= least and group.width % block == 0]
        return {f"wush-{block}": fitted(group.sites, offline, own, block) for block in blocks}


def _total(offline: Transform | None, online: Transform | None) -> Transform | None:
    return online if offline is None else offline if online is None else compose(offline, online)


def able(analysis: Analysis, group: Siblings) -> bool:
    """Whether there can be an online transform in front of a group: it would spread infinity over all features."""
    return features_last(analysis, group) and infinity(analysis, group.value, group.ref) is None


def features_last(analysis: Analysis, group: Siblings) -> bool:
    """Whether the features of the value run fastest, which online transforms need: nothing but axes of one follow."""
    refs = list(analysis.refs(group.value))
    while len(refs) > 1 and analysis.axes.size(refs[-1]) == 1:
        refs.pop()
    return all(site.ref_in is refs[-1] for site in group.sites)
