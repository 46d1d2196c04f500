"""The transforms that may fold into a space: its labels, the first of which is none.

A space is labelled for all its readers. Each of them may still take an online transform behind a label that only moves
or scales channels, so that labels are compared by the best that readers can do under each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from qcompile.analysis.axes import AxisNode, Mode, Structure
from qcompile.analysis.boundaries import boundaries, sides_of
from qcompile.analysis.folding import axis_transform
from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Analysis, Site
from qcompile.choice.candidates import fitted_candidates, named_candidate, orthogonal_candidates
from qcompile.choice.cuts import components
from qcompile.choice.fits import Fit, fit_of_space, seen_as
from qcompile.choice.kinds import FREE, NAMED
from qcompile.choice.online import Online, first_of
from qcompile.choice.placement import Placement
from qcompile.choice.probe import Probe
from qcompile.choice.scoring import site_loss, written_factor
from qcompile.choice.settling import settle
from qcompile.group.group import ALONE, Group
from qcompile.statistics.evidence import errs_less
from qcompile.targets.scheme import Scheme
from qcompile.transforms.freedom import Freedom

if TYPE_CHECKING:
    from qcompile.transforms import Transform

    #: By group of sites, the schemes that compete, each one for every site.
    Competing = Mapping[Siblings, Sequence[Sequence[Scheme]]]

__all__ = ["WISH", "Labels", "labels_of"]

R = TypeVar("R")

#: Groups of sites on which a space's candidates are compared; more change no choice that was seen.
COMPARED = 12

#: Labels of a space, besides none, that stay in the decision.
KEPT = 2

#: How far the ranks of one group, which few rows give, may be off, as a part of them: what is nearer counts as equal.
UNSURE = 0.05

#: The loss of a space that does not change although a user asks for it: more than anything that is predicted.
WISH = 1e9


@dataclass(frozen=True)
class Labels:
    """The transforms of a space that compete.

    Args:
        transforms: by name, the first ``None``.
        losses: of each as such, whatever its readers do.
        readers: the groups of sites that read the space.
        error: of the readers without any transform.
    """

    transforms: Mapping[str, Transform | None]
    losses: Sequence[float]
    readers: Sequence[Siblings]
    error: float


def labels_of(
    analysis: Analysis, groups: Sequence[Siblings], online: Online, competing: Competing, placement: Placement,
    processes: Group = ALONE,
) -> dict[AxisNode, Labels]:  # fmt: skip
    """By space, the labels that its readers may do better under; what was compared goes into the placement.

    Args:
        processes: each of which compares them for some of the readers.
    """
    names = {space.node: space.id for space in analysis.spaces}
    seeds, freedoms = _joined(analysis)
    found: dict[AxisNode, Labels] = {}
    chosen: dict[AxisNode, Transform] = {}  # the best so far: later spaces are compared in their basis
    for number, (node, readers) in enumerate(_readers(analysis, groups).items()):
        name = names.get(node, f"axis{number}")
        kind = online.kind_for(readers, f"space {name}")
        seed, freedom = online.seed + seeds.get(node, number), freedoms.get(node, node.freedom)
        schemes = [first_of(options) for options in competing[readers[0]]]
        mode = seen_as(analysis.axes, node, readers)
        maker = _Maker(node, kind, schemes, seed, (freedom, node.freedom), online.fits, mode)
        spread = np.linspace(0, len(readers) - 1, min(COMPARED, len(readers))).astype(int)
        compared = [readers[i] for i in spread]
        transforms = maker.make(
            fit_of_space(analysis.axes, node, readers, online.moments.of, chosen) if maker.fits else None
        )
        if not transforms:
            continue
        scored = _Scored(analysis, node, compared, online, competing, chosen, processes)
        found[node] = scored.labels(transforms, readers, kind, placement.errors, name)
        settle(analysis, node, readers, online, competing, found[node].transforms.values(), processes)
        if scored.best in transforms:
            chosen[node] = transforms[scored.best]
    return found


@dataclass(frozen=True)
class _Maker:
    """Makes the transforms of a space: for each scheme that competes and for each freedom that is enough."""

    node: AxisNode
    kind: str
    schemes: Sequence[Scheme]
    seed: int
    freedoms: Sequence[Freedom]
    learns: bool  # whether data may teach transforms that nobody asked for
    mode: Mode | None = Mode.SAME

    @property
    def fits(self) -> bool:
        """Whether anything is fitted to data."""
        return self.learns if self.kind == "auto" else self.kind in NAMED and NAMED[self.kind].fitted

    def make(self, fit: Fit | None) -> dict[str, Transform]:
        """By name."""
        size, found = self.node.size, dict[str, "Transform"]()
        if self.kind == "none" or self.node.structure is not Structure.LEAF or size is None:
            return found
        for freedom in dict.fromkeys(self.freedoms):
            for scheme in {scheme.group: scheme for scheme in self.schemes}.values():  # by which alone they differ
                made = self._one(size, scheme, freedom, fit)
                found |= {_name(name, freedom, item): item for name, item in made.items() if name not in found}
        return found

    def _one(self, size: int, scheme: Scheme, freedom: Freedom, fit: Fit | None) -> dict[str, Transform]:
        if self.mode is None:  # readers that see a basis and its dual agree on rotations alone
            freedom &= Freedom.ORTHOGONAL
        if self.kind not in FREE:
            named = named_candidate(self.kind, size, scheme, self.seed, freedom, fit, offline=True)
            return {} if named is None else {self.kind: self._own(named)}
        found: dict[str, Transform] = {}
        if self.kind == "auto" and Freedom.ORTHOGONAL_ONES in freedom:
            found |= orthogonal_candidates(size, scheme, "auto", self.seed, freedom, offline=True)
        if fit is not None:
            made = fitted_candidates(fit, scheme, freedom, self.seed)
            wanted = {name: item for name, item in made.items() if self.kind == "auto" or name.startswith("wush")}
            found |= {name: self._own(item) for name, item in wanted.items()}
        return found

    def _own(self, transform: Transform) -> Transform:
        """The transform of the space by which its readers see that one."""
        return transform.dual() if self.mode is Mode.DUAL else transform


def _name(name: str, freedom: Freedom, transform: Transform) -> str:
    """A label's name; two spaces whose labels are called alike and that boundaries part have one transform."""
    regular = Freedom.ORTHOGONAL not in freedom and transform.group not in Freedom.MONOMIAL
    return f"regular-{name}" if regular and not name.startswith("regular") else name


class _Scored:
    """The transforms of one space, compared by what its readers lose under each."""

    def __init__(
        self, analysis: Analysis, node: AxisNode, compared: Sequence[Siblings], online: Online, competing: Competing,
        chosen: Mapping[AxisNode, Transform], processes: Group,
    ) -> None:  # fmt: skip
        self.analysis, self.node, self.compared, self.online = analysis, node, compared, online
        self.processes = processes
        self.competing, self.chosen, self.best = competing, {n: t for n, t in chosen.items() if n is not node}, "none"
        self._shares: dict[tuple[Transform | None, int], np.ndarray] = {}

    def under(self, transform: Transform | None) -> dict[AxisNode, Transform]:
        """The spaces that change if this one takes a transform."""
        return self.chosen if transform is None else {**self.chosen, self.node: transform}

    def labels(
        self, transforms: Mapping[str, Transform], readers: Sequence[Siblings], kind: str,
        errors: dict[str, dict[str, float]], name: str,
    ) -> Labels:  # fmt: skip
        """The labels that are kept, and what all of them lose in ``errors``."""
        every: dict[str, Transform | None] = {"none": None, **transforms}
        schemes = range(max(len(self.competing[group]) for group in self.compared))
        ranks = self._of_each(lambda group: [[self._rank(group, t, i) for i in schemes] for t in every.values()])
        costs = dict(zip(every, np.array(ranks).sum(0), strict=True))
        base, scale = self._base(), len(readers) / len(self.compared)
        plain = costs["none"]
        errors[name] = {label: float((cost / np.maximum(plain, 1e-30)).mean()) for label, cost in costs.items()}
        first_under = partial(self._first, transforms, costs, forced=kind not in FREE)
        first = {label for i in schemes for label in first_under(i)}
        kept = {label for label in transforms if label in first and (kind not in FREE or self._proven(label, every))}
        taken = {label: item for label, item in every.items() if label == "none" or label in kept}
        self.best = min(taken, key=lambda label: (float(errors[name][label]), label != "none", label))
        forced = kind not in FREE and not self.online.forced
        losses = [WISH if label == "none" and forced else self._written(item) for label, item in taken.items()]
        return Labels(taken, losses, readers, base * scale)

    def _first(
        self, transforms: Mapping[str, Transform], costs: Mapping[str, np.ndarray], index: int, *, forced: bool
    ) -> list[str]:  # fmt: skip
        """The transforms that few rows rank first under a scheme, of those that are no worse than none."""
        far = 1 + UNSURE / len(self.compared) ** 0.5
        able = [label for label in transforms if forced or costs[label][index] < costs["none"][index]]
        ranked = sorted(able, key=lambda label: (costs[label][index], label))[:KEPT]
        return [label for label in ranked if forced or costs[label][index] <= far * costs[ranked[0]][index]]

    def _of_each(self, work: Callable[[Siblings], R]) -> list[R]:
        """What is found for each group that is compared."""
        return self.processes.spread(self.compared, lambda part: [work(group) for group in part])

    def _rank(self, group: Siblings, transform: Transform | None, index: int) -> float:
        return self.online.rank(group, self.under(transform), self.competing[group][index])

    def _base(self) -> float:
        return sum(self._of_each(self._plain))

    def _plain(self, group: Siblings) -> float:
        return float(np.mean([self.online.probes[group].error(schemes) for schemes in self.competing[group]]))

    def _proven(self, label: str, every: Mapping[str, Transform | None]) -> bool:
        """Whether a label that was fitted to data errs less on others, for any of the schemes."""
        if not self.online.fits or not _is_fitted(label):
            return True
        return any(
            errs_less(self._held_out(every[label], i), self._held_out(None, i))
            for i in range(max(len(self.competing[group]) for group in self.compared))
        )

    def _held_out(self, transform: Transform | None, index: int) -> np.ndarray:
        key = transform, index
        if key not in self._shares:
            total = np.zeros(0)
            for shares in self._of_each(lambda group: self._shares_of(group, transform, index)):
                total = shares if not len(total) else total + shares if len(total) == len(shares) else total
            self._shares[key] = total
        return self._shares[key]

    def _shares_of(self, group: Siblings, transform: Transform | None, index: int) -> np.ndarray:
        chosen, schemes = self.under(transform), self.competing[group][index]
        choice, offline = self.online.best(group, chosen, schemes), self.online.offline(group.ref, chosen)
        return self.online.probes[group].held_out(schemes, choice.after(offline))

    def _written(self, transform: Transform | None) -> float:
        """What sites lose more by writing the space in a basis that is not orthogonal."""
        if transform is None or transform.orthogonal or transform.group in Freedom.MONOMIAL:
            return 0.0
        lost = 0.0
        for group, site, item in self._writers():
            out = axis_transform(self.analysis.axes, site.ref_out, {self.node: transform})
            place = group.sites.index(site)
            scheme = min((schemes[place] for schemes in self.competing[group]), key=lambda own: own.bits)
            if out is not None and scheme.weight is not None:
                loss = site_loss(item, Scheme(scheme.weight))
                lost += max(written_factor(item, scheme, out) - 1, 0.0) * loss
        return lost

    def _writers(self) -> Iterable[tuple[Siblings, Site, Probe]]:
        for group, probes in self.online.probes.items():
            for site, item in zip(group.sites, probes.items, strict=True):
                if any(leaf.node is self.node for leaf in self.analysis.axes.leaves(site.ref_out)):
                    yield group, site, item


def _is_fitted(label: str) -> bool:
    return not label.removeprefix("regular-").startswith(("hadamard", "block-hadamard", "random-orthogonal"))


def _readers(analysis: Analysis, groups: Sequence[Siblings]) -> dict[AxisNode, list[Siblings]]:
    readers: dict[AxisNode, list[Siblings]] = defaultdict(list)
    for group in groups:
        for leaf in analysis.axes.leaves(group.ref):
            if leaf.node.size and leaf.node.size > 1 and leaf.mode is not Mode.PLAIN:
                readers[leaf.node].append(group)
    return readers


# -- spaces that boundaries part ---------------------------------------------------------------------------------------


def _joined(analysis: Analysis) -> tuple[dict[AxisNode, int], dict[AxisNode, Freedom]]:
    """For spaces that boundaries part, one seed and what all of them allow: then they may have one transform."""
    pairs = [
        (a, b)
        for wall in boundaries(analysis)
        for a, b in sides_of(analysis, wall)
        if a is not None and b is not None and Freedom.ORTHOGONAL_ONES in a.freedom & b.freedom
    ]
    order = {space.node: number for number, space in enumerate(analysis.spaces)}
    seeds, freedoms = dict[AxisNode, int](), dict[AxisNode, Freedom]()
    for spaces in components(pairs):
        shared = Freedom.GENERAL
        for node in spaces:
            shared &= node.freedom
        seeds |= dict.fromkeys(spaces, min(order.get(node, 0) for node in spaces))
        freedoms |= dict.fromkeys(spaces, shared)
    return seeds, freedoms
