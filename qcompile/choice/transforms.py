"""Chooses transforms: offline for whole spaces where the freedom allows, online in front of sites where it pays.

For every space the candidates are the identity and what its freedom allows: Hadamard matrices whole and in blocks,
closed forms that are fitted to calibration data. In front of sites the same kinds compete as online transforms,
charged for their cost, and a norm takes over a scale of its output for nothing. All is decided by predicted error.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Analysis
from qcompile.choice.cuts import components
from qcompile.choice.decision import Posed, pose
from qcompile.choice.exchange import Exchange, Share, rate_of
from qcompile.choice.kinds import KINDS
from qcompile.choice.labels import labels_of
from qcompile.choice.online import Online
from qcompile.choice.placement import Placement
from qcompile.choice.question import Asked
from qcompile.choice.scoring import Probes
from qcompile.choice.staying import able
from qcompile.errors import InputError, unknown
from qcompile.group.group import ALONE, Group
from qcompile.notes import Progress
from qcompile.prices.graph_clock import GraphClock
from qcompile.statistics.collected import Statistics
from qcompile.targets.scheme import Scheme

__all__ = ["place", "pose_choice"]


def place(
    analysis: Analysis,
    probes: Mapping[Siblings, Probes],
    scheme: Callable[[Siblings], Scheme],
    *,
    kind: str = "auto",
    kinds: Mapping[Siblings, str] | None = None,
    statistics: Mapping[str, Statistics] | None = None,
    fits: bool = True,
    price: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Placement:
    """Choose all transforms of a graph.

    Args:
        probes: the sites to be helped, with what their errors are predicted on.
        scheme: how the sites of a group will compute.
        kind: one of ``KINDS``: a name forces transforms of that kind wherever a space allows them, and online in
            front of the other sites; ``auto`` compares, and so does ``wush`` with doing nothing.
        kinds: of groups that are to have one of their own; a space whose readers have takes theirs.
        statistics: by value name; without them the identity.
        fits: whether transforms may be fitted to the statistics, and not only compared on them: what is fitted to
            random inputs is worse than nothing on others. A kind that is asked for by name is fitted in any case.
        price: an online transform that costs a fraction ``c`` of its sites' arithmetic must lower their error by a
            factor of at least ``1 + price · c``.

    Raises:
        InputError: if a kind is unknown, or groups that share a transform are given kinds that differ.
    """
    asked = Asked([""], {group: [[scheme(group)] * len(group.sites)] for group in probes})
    placement, posed = pose_choice(
        analysis, probes, asked, kind=kind, kinds=kinds, statistics=statistics, fits=fits, price=Share(price),
        seed=seed, progress=progress,
    )  # fmt: skip
    posed.decide(placement)
    return placement


def pose_choice(
    analysis: Analysis,
    probes: Mapping[Siblings, Probes],
    asked: Asked,
    *,
    kind: str = "auto",
    kinds: Mapping[Siblings, str] | None = None,
    statistics: Mapping[str, Statistics] | None = None,
    fits: bool = True,
    price: Share | GraphClock,
    seed: int = 0,
    staying: str = "any",
    channels: bool = False,
    progress: Progress | None = None,
    group: Group = ALONE,
) -> tuple[Placement, Posed]:
    """One decision on all transforms of a graph and on a scheme for every group and table, with all that it needs.

    Args:
        asked: the schemes that compete, what they cost, and budgets; see ``place`` for the other parameters.
        price: of online transforms: by their share of arithmetic, or by their time, at the rate of ``exchange``.
        staying: the transforms that may stay in the graph, in the words of ``Target.online``.
        channels: whether they may in front of convolutions.
        group: the processes that share the measuring of candidates.

    Returns:
        a placement that says what was compared, and the decision, which puts transforms into it.

    Raises:
        InputError: as ``place``.
    """
    for word in (kind, *(kinds or {}).values()):
        if word not in KINDS:
            raise InputError(unknown("transforms", word, KINDS))
    groups = list(probes)
    partners = _sharing(analysis, groups)
    barred = {own for own in groups if partners[own] is None}
    led = Counter(partners.values())
    tied = {own for own in groups if partners[own] is not own or led[own] > 1}
    kinds_of = _with_leaders(kinds or {}, partners)
    first = Share(0.0) if isinstance(price, GraphClock) else price
    online = Online(
        analysis, probes, kind, statistics or {}, first, seed, barred, tied, fits, kinds_of, staying, channels
    )
    if isinstance(price, GraphClock):
        online.price = _exchange(online, asked, price)
    placement = Placement({}, {}, rate=online.price.rate if isinstance(online.price, Exchange) else None)
    labels = labels_of(analysis, groups, online, asked.schemes, placement, group)
    return placement, pose(analysis, asked, online, labels, partners, progress, group)


def _exchange(online: Online, asked: Asked, clock: GraphClock) -> Exchange:
    """What a second is worth where all compute in the first scheme that competes, the coarsest."""
    schemes = {group: competing[0] for group, competing in asked.schemes.items()}
    quantized = [group for group, own in schemes.items() if any(scheme.weight is not None for scheme in own)]
    pairs = {group: list(zip(group.sites, schemes[group], strict=True)) for group in quantized}
    seconds = math.fsum(clock.products(own) for own in pairs.values())
    sized = [(math.prod(site.shape), scheme.bits) for own in pairs.values() for site, scheme in own]
    bits = sum(size * width for size, width in sized) / max(sum(size for size, _ in sized), 1)
    if "latency" in asked.budgets:  # which says what time is worth
        return Exchange(clock, 0.0)
    stored = sum(size * width for size, width in sized) / 8
    free = Exchange(clock, 0.0, seconds / max(stored, 1))
    offers = [online.offer(group, schemes[group], free.worth) for group in quantized]
    return replace(free, rate=rate_of(offers, bits, seconds))


def _sharing(analysis: Analysis, groups: Sequence[Siblings]) -> dict[Siblings, Siblings | None]:
    """For each group, the one that decides for it: groups that share a weight take one transform, or none.

    ``None`` where a site outside of the groups, or one that cannot take an online transform, reads a shared weight, or
    where the weight is an output of the graph.
    """
    readers: dict[ir.Value, list[Siblings | None]] = defaultdict(list)
    of_site = {id(site): group for group in groups for site in group.sites}
    for site in analysis.sites:
        readers[site.weight] += [of_site.get(id(site)), *([None] if site.weight.is_graph_output() else [])]
    pairs: list[tuple[Siblings, Siblings]] = []
    spoiled: set[Siblings] = set()
    for found in readers.values():
        known = [group for group in found if group is not None]
        pairs += zip(known, known[1:], strict=False)
        if None in found or (len(set(known)) > 1 and not all(able(analysis, group) for group in known)):
            spoiled.update(known)
    decided = {group: None if group in spoiled else group for group in groups}
    for component in components(pairs):
        first = next(group for group in groups if group in component)
        decided |= dict.fromkeys(component, None if component & spoiled else first)
    return decided


def _with_leaders(
    kinds: Mapping[Siblings, str], partners: Mapping[Siblings, Siblings | None]
) -> dict[Siblings, str]:  # fmt: skip
    """The kinds of groups, and of those that decide for them."""
    return {leader: kinds[group] for group in kinds if (leader := partners[group]) is not None} | dict(kinds)
