"""The transforms that stay in the graph: the best one in front of the sites that read a value, given what folds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qcompile.analysis.axes import AxisNode, Ref
from qcompile.analysis.folding import axis_transform
from qcompile.analysis.infinity import infinity
from qcompile.analysis.scales import norm_before
from qcompile.analysis.siblings import Siblings, shared_table
from qcompile.analysis.spaces import Analysis
from qcompile.choice.candidates import LEAST_GAIN, is_shared, named_candidate, not_worth
from qcompile.choice.contenders import Contender, OnlineChoice, Tried, contenders, diagonals
from qcompile.choice.exchange import Offer, Price
from qcompile.choice.fits import Moments
from qcompile.choice.kinds import FREE, NAMED
from qcompile.choice.scoring import Probes
from qcompile.choice.staying import STAYING, able
from qcompile.errors import InputError
from qcompile.statistics.evidence import errs_less
from qcompile.targets.scheme import Scheme
from qcompile.transforms.freedom import Freedom
from qcompile.transforms.shared_block import MOST

if TYPE_CHECKING:
    import numpy as np

    from qcompile.statistics.collected import Statistics
    from qcompile.transforms import Transform

    Schemes = Sequence[Scheme]

__all__ = ["Online", "first_of"]

#: Candidates of an input that are measured, of those that a few rows rank first: the second where it is near.
MEASURED, NEAR = 2, 1.1

#: What a candidate may cost by a few rows, relative to none, and still be measured.
WORTH_MEASURING = 1.1


@dataclass
class Online:
    """Chooses for each group; ``place`` documents the parameters."""

    analysis: Analysis
    probes: Mapping[Siblings, Probes]
    kind: str
    statistics: Mapping[str, Statistics]
    price: Price
    seed: int
    barred: set[Siblings]  # groups with a weight that is read in another basis too
    tied: set[Siblings] = field(default_factory=set)  # groups with a weight that others read
    fits: bool = True  # what is fitted must then hold on sequences that were held out
    own: Mapping[Siblings, str] = field(default_factory=dict)  # kinds of single groups
    staying: str = "any"  # of transforms, those that may stay in the graph: ``Target.online``
    channels: bool = False  # whether in front of convolutions too
    _known: dict[tuple[object, ...], OnlineChoice] = field(default_factory=dict)
    _offline: dict[tuple[object, ...], Transform | None] = field(default_factory=dict)
    tried: Tried = field(default_factory=Tried)

    def __post_init__(self) -> None:
        devices = {group: own.device for group, own in self.probes.items()}
        felt = {group: own.felt for group, own in self.probes.items() if self.kind_of(group) == "auto"}
        self.moments = Moments(self.statistics, devices, felt)

    @property
    def forced(self) -> bool:
        """Whether every site is to see another basis, at whatever price."""
        return self.kind not in (*FREE, "none")

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

    def offline(self, ref: Ref, chosen: Mapping[AxisNode, Transform]) -> Transform | None:
        """The transform of an axis where those spaces change basis: one and the same, however often it is asked for."""
        key = ref, *(chosen.get(leaf.node) for leaf in self.analysis.axes.leaves(ref))
        if key not in self._offline:
            self._offline[key] = axis_transform(self.analysis.axes, ref, chosen)
        return self._offline[key]

    def best(
        self, group: Siblings, chosen: Mapping[AxisNode, Transform], schemes: Schemes, *, bare: bool = False
    ) -> OnlineChoice:  # fmt: skip
        """The choice for a group under schemes of its sites, where those spaces change basis.

        Args:
            bare: whether nothing may stay in the graph.
        """
        table = shared_table(group)
        refs = [group.ref] if table is None else [group.ref, self.analysis.refs(table)[1]]
        offline, *others = (self.offline(ref, chosen) for ref in refs)
        key = group, tuple(scheme.name for scheme in schemes), bare, offline, *others
        if key not in self._known:
            if others and (offline is None or offline is others[0]):  # or they part
                self._known[key] = self._as_table(group, offline, others[0], schemes, bare=bare)
            else:
                self._known[key] = self._chosen(group, offline, schemes, bare=bare)
        return self._known[key]

    def forget(self, groups: Collection[Siblings]) -> None:
        """Drop all that is known of groups but what is best there: together it takes more memory than weights do."""
        self.tried.forget(groups)
        self.moments.forget(groups)

    def rank(self, group: Siblings, chosen: Mapping[AxisNode, Transform], schemes: Schemes) -> float:
        """The cost of the best by a few rows, to tell spaces' transforms apart: much cheaper than ``best``."""
        if self.kind_of(group) not in FREE or shared_table(group) is not None:
            return self.best(group, chosen, schemes).cost
        offline = self.offline(group.ref, chosen)
        return min(self._ranked(group, offline, schemes, few=True)[1].values())

    def _chosen(
        self, group: Siblings, offline: Transform | None, schemes: Schemes, *, bare: bool
    ) -> OnlineChoice:  # fmt: skip
        forced = self.kind_of(group) not in (*FREE, "none")
        return self._forced(group, offline, schemes) if forced else self._by_error(group, offline, schemes, bare)

    def _as_table(
        self, group: Siblings, offline: Transform | None, transform: Transform | None, schemes: Schemes, *, bare: bool
    ) -> OnlineChoice:
        """The transform of a table's rows for the head that shares them, unless it comes to its input offline."""
        forced = self.kind_of(group) not in (*FREE, "none")
        able = not bare and transform is not None and transform.orthogonal and self._able(group)
        if transform is offline or transform is None or not able:
            return OnlineChoice(None, 0.0 if forced else self.probes[group].error(schemes, offline))
        if forced:
            return OnlineChoice(transform, 1.0)
        error = self.probes[group].error(schemes, transform)
        return OnlineChoice(transform, error + self.price.of([group], transform, error))

    def _able(self, group: Siblings) -> bool:
        return group not in self.barred and able(self.analysis, group, channels=self.channels)

    def _forced(self, group: Siblings, offline: Transform | None, schemes: Schemes) -> OnlineChoice:
        if offline is not None:
            return OnlineChoice(None, 0.0)
        kind, behind = self.kind_of(group), self._behind(group)
        if kind == "diagonal" and behind:
            return OnlineChoice(None, 0.0, behind=behind["diagonal"])
        if self.staying == "none":
            return OnlineChoice(None, 1.0, skipped=STAYING["none"])
        if not self._able(group):
            return OnlineChoice(None, 1.0, skipped=infinity(self.analysis, group.value, group.ref))
        found = named_candidate(
            kind, group.width, first_of(schemes), self.seed, Freedom.GENERAL, self.moments.of(group), offline=False
        )
        if found is None:
            unfitted = NAMED[kind].fitted and self.moments.of(group) is None
            why = "without calibration data" if unfitted else "of its size"
            why = why if NAMED[kind].online else "in front of sites, where it would do nothing"
            return OnlineChoice(None, 1.0, skipped=f"there is no transform of kind '{kind}' {why}")
        reason = not_worth(group.value, group.sites)
        if self.staying != "any" and not is_shared(found):
            reason = (
                f"the target holds one matrix for all blocks of a layer, of {MOST} features at most: '{kind}' has more"
            )
        return OnlineChoice(found if reason is None else None, 1.0, skipped=reason)

    def _behind(self, group: Siblings) -> dict[str, Transform]:
        """Diagonals that the norm before a group could take over."""
        fit = None if group in self.tied or shared_table(group) is not None else self.moments.of(group)
        if fit is None or norm_before(self.analysis, group) is None:
            return {}
        return diagonals(fit)

    # -- by error --------------------------------------------------------------------------------------------------

    def _by_error(self, group: Siblings, offline: Transform | None, schemes: Schemes, bare: bool) -> OnlineChoice:
        probes = self.probes[group]
        base = probes.error(schemes, offline)
        if all(scheme.weight is None for scheme in schemes) or self.kind_of(group) == "none":
            return OnlineChoice(None, base)
        found = self._screened(group, offline, schemes)
        made = {name: item for name, item in found.items() if not (bare and item.transform is not None)}
        errors, costs = {"none": 1.0}, {"none": base}
        for name, item in made.items():
            error = probes.error(schemes, self.tried.after(offline, item))
            errors[name], costs[name] = error / base if base else 1.0, self._cost(group, item, error, base)
        return self._proven(group, offline, schemes, made, errors, costs)

    def _proven(
        self, group: Siblings, offline: Transform | None, schemes: Schemes, made: Mapping[str, Contender],
        errors: Mapping[str, float], costs: Mapping[str, float],
    ) -> OnlineChoice:  # fmt: skip
        """The cheapest candidate; one that is fitted must clearly err less on sequences that it was not fitted on."""
        probes, unproven = self.probes[group], None
        asked = self.kind_of(group) == "wush" and bool(made)
        plain = min((name for name in costs if name == "none" or not made[name].fitted), key=costs.__getitem__)
        theirs: np.ndarray | None = None
        for name in sorted(costs, key=lambda name: (asked and name == "none", costs[name])):
            item = made.get(name)
            if item is None or not item.fitted or not self.fits:
                break
            if theirs is None:
                known = made.get(plain, Contender(None, None, fitted=False))
                theirs = probes.held_out(schemes, self.tried.after(offline, known))
            ours = probes.held_out(schemes, self.tried.after(offline, item))
            if errs_less(ours, theirs):
                break
            unproven = unproven or f"on {len(ours)} sequences that it had not seen, {name} does not clearly err less"
        item = made.get(name, Contender(None, None, fitted=False))
        unproven = None if item.fitted else unproven
        return OnlineChoice(item.transform, costs[name], errors, None, unproven, item.behind, name, costs)

    def behind_another(
        self, group: Siblings, choice: OnlineChoice, offline: Transform | None, schemes: Schemes
    ) -> float:  # fmt: skip
        """The cost of a group behind the online transform of another one, whose weight it shares."""
        error, base = (self.probes[group].error(schemes, t) for t in (choice.after(offline), offline))
        return self._cost(group, Contender(choice.behind, choice.transform, fitted=False), error, base)

    def _cost(self, group: Siblings, item: Contender, error: float, base: float) -> float:
        if item.transform is None:
            return error
        return error + self.price.of([group], item.transform, error) + LEAST_GAIN * base

    def _screened(self, group: Siblings, offline: Transform | None, schemes: Schemes) -> dict[str, Contender]:
        """The candidates that are worth measuring: the first of each sort, by a few rows."""
        made, costs = self._ranked(group, offline, schemes)
        if self.kind_of(group) != "wush":
            made = {name: item for name, item in made.items() if costs[name] < WORTH_MEASURING * costs["none"]}
        kept = {name for fitted in (True, False) for name in self._first(made, costs, fitted=fitted)}
        return {name: item for name, item in made.items() if name in kept}

    def _ranked(
        self, group: Siblings, offline: Transform | None, schemes: Schemes, *, few: bool = False
    ) -> tuple[dict[str, Contender], dict[str, float]]:
        """All candidates, and what each costs by a few rows; of ``none`` too."""
        made, errors = self._screen(group, offline, schemes, few=few)
        base = errors["none"]
        return made, {"none": base} | {name: self._cost(group, item, errors[name], base) for name, item in made.items()}

    def _screen(
        self, group: Siblings, offline: Transform | None, schemes: Schemes, *, few: bool = False
    ) -> tuple[dict[str, Contender], dict[str, float]]:
        """All candidates, and the error of each by a few rows; of ``none`` too."""
        key = group, tuple(scheme.name for scheme in schemes), offline, few
        if key not in self.tried.screens:
            made, probes = self._contenders(group, offline, first_of(schemes), few), self.probes[group]
            errors = {"none": probes.screen(schemes, offline)}
            for name, item in made.items():
                errors[name] = probes.screen(schemes, self.tried.after(offline, item))
            self.tried.screens[key] = made, errors
        return self.tried.screens[key]

    def offer(self, group: Siblings, schemes: Schemes, seconds: Callable[[Siblings, Transform], float]) -> Offer:
        """All that can stand in front of a group whose value comes as it is, by a few rows, and the seconds of each."""
        made, errors = self._screen(group, None, schemes)
        scale = self.probes[group].error(schemes) / max(errors["none"], 1e-30)
        own = {name: 0.0 if (t := item.transform) is None else seconds(group, t) for name, item in made.items()}
        return Offer(errors["none"] * scale, [(errors[name] * scale, cost) for name, cost in own.items()])

    @staticmethod
    def _first(made: Mapping[str, Contender], costs: Mapping[str, float], *, fitted: bool) -> list[str]:
        ranked = sorted((name for name in made if made[name].fitted is fitted), key=costs.__getitem__)
        return [name for name in ranked[:MEASURED] if costs[name] <= NEAR * costs[ranked[0]]]

    def _contenders(
        self, group: Siblings, offline: Transform | None, scheme: Scheme, few: bool
    ) -> dict[str, Contender]:
        """All candidates, which are the same for schemes with groups of one size."""
        key = group, offline, scheme.group, few
        if key in self.tried.made:
            return self.tried.made[key]
        wush, scaled = self.kind_of(group) == "wush", offline is not None and offline.group in Freedom.DIAGONAL
        undone = scaled and self.staying == "any"  # behind scales WUSH is what it is without, and scales are scales
        fit = self.moments.of(group, offline) if wush or (self.fits and not undone) else None
        behind = fit is not None and not wush and bool(self._behind(group))
        mixed = wush or not (offline is None or offline.group in Freedom.MONOMIAL)
        able = self._able(group) and (self.staying in ("any", "shared") or (self.staying == "asked" and wush))
        flags = {"behind": behind, "able": able, "mixed": mixed, "shared": self.staying != "any", "few": few}
        made = contenders(group.width, scheme, fit, self.seed, **flags)
        return self.tried.made.setdefault(key, made)


def first_of(schemes: Schemes) -> Scheme:
    """The scheme whose groups transforms are made for: the first that quantizes."""
    return next((scheme for scheme in schemes if scheme.weight is not None), schemes[0])
