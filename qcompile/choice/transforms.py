"""Chooses transforms: offline for whole spaces where the freedom allows, online in front of sites where it pays.

For every space with an orthogonal freedom the candidates are the identity, block-diagonal Hadamard matrices of the
format's group and its multiples, and the full width; where any invertible matrix is allowed, also the closed form
WUSH. What stays is decided by predicted error on the sites that read the space. In front of sites whose space cannot
take a transform, the same candidates compete as online transforms, charged for their cost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Analysis
from qcompile.choice.cuts import components
from qcompile.choice.offline import place_offline
from qcompile.choice.online import Online, able
from qcompile.choice.placement import Placement
from qcompile.choice.scoring import Probes
from qcompile.errors import InputError, unknown
from qcompile.notes import Progress
from qcompile.statistics.calibration import Statistics
from qcompile.targets.scheme import Scheme

__all__ = ["KINDS", "place"]

#: What ``--transforms`` takes.
KINDS = ("auto", "none", "hadamard", "block", "wush")


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
        kind: one of ``KINDS``; ``hadamard`` forces full-width rotations wherever a space allows, and online in
            front of the other sites; ``block`` the same with blocks of the format's group; ``wush`` is WUSH online.
        kinds: of groups that are to have one of their own; a space whose readers have takes theirs.
        statistics: by value name; without them the identity.
        fits: whether transforms may be fitted to the statistics, and not only compared on them: what is fitted to
            random inputs is worse than nothing on others. ``wush`` asks for it in any case.
        price: an online transform that costs a fraction ``c`` of its sites' arithmetic must lower their error by a
            factor of at least ``1 + price · c``.

    Raises:
        InputError: if a kind is unknown, or groups that share a transform are given kinds that differ.
    """
    for word in (kind, *(kinds or {}).values()):
        if word not in KINDS:
            raise InputError(unknown("transforms", word, KINDS))
    if kind == "none" and not kinds:
        return Placement({}, {})
    groups = list(probes)
    placement, partners = Placement({}, {}), _sharing(analysis, groups)
    barred = {group for group in groups if partners[group] is None}
    own = _with_leaders(kinds or {}, partners)
    online = Online(analysis, probes, scheme, kind, statistics or {}, price, seed, barred, fits, own)
    place_offline(analysis, groups, online, placement)
    for done, group in enumerate(groups):
        leader = partners[group]
        if leader is not None and leader is not group:
            _follow(group, leader, placement)
        elif leader is not None:
            _place_online(group, online, placement)
        if progress is not None:
            progress("choosing transforms", done + 1, len(groups))
    return placement


def _place_online(group: Siblings, online: Online, placement: Placement) -> None:
    choice, name = online.best(group, placement.offline), group.name
    if choice.errors:
        placement.errors[name] = dict(choice.errors)
    if choice.unproven is not None:
        placement.unproven[name] = choice.unproven
    if choice.skipped is not None:
        placement.skipped[name] = choice.skipped
    elif choice.transform is not None:
        placement.online[name] = choice.transform


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


def _follow(group: Siblings, leader: Siblings, placement: Placement) -> None:
    """Take the online transform of the group that shares a weight."""
    if leader.name in placement.online:
        placement.online[group.name] = placement.online[leader.name]
