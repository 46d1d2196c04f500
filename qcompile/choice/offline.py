"""Chooses the transforms that fold into weights: one for each space that allows any, by the errors of its readers.

What a space gains by changing basis is what its readers lose without it, and they may take an online transform instead:
the cost of a label is the sum over readers of the best that each can do under it. Each reader decides for itself, so
the best placement for the chosen candidates is a minimum cut over the spaces alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qcompile.analysis.axes import Axes, AxisNode, Mode, Ref, Structure
from qcompile.analysis.boundaries import Boundary, boundaries
from qcompile.analysis.folding import axis_transform
from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Analysis
from qcompile.choice.candidates import LEAST_GAIN, orthogonal_candidates
from qcompile.choice.cuts import components, minimum_cut
from qcompile.choice.online import FORCED, Online
from qcompile.transforms.freedom import Freedom

if TYPE_CHECKING:
    from qcompile.choice.placement import Placement
    from qcompile.transforms import Transform

__all__ = ["Candidate", "candidates_of", "place_offline"]

#: Groups of sites on which a space's candidates are compared; more change no choice that was seen.
COMPARED = 12


#: The loss of a space that does not change although a user asks for it: more than anything that is predicted.
WISH = 1e9


@dataclass(frozen=True)
class Candidate:
    """The transform of a space that is best for its readers.

    Args:
        transform: what would fold into weights.
        readers: the groups of sites that read the space.
        error: of the readers without any transform; with forced transforms one each.
        plain: what is lost where the space stays, online transforms of its readers included.
        changed: what is lost where it changes.
    """

    transform: Transform
    readers: Sequence[Siblings]
    error: float
    plain: float
    changed: float


def place_offline(analysis: Analysis, groups: Sequence[Siblings], online: Online, placement: Placement) -> None:
    """Choose the spaces that change basis, and what boundaries become."""
    found = candidates_of(analysis, groups, online, placement)
    walls = boundaries(analysis)
    costs = {node: (item.plain, item.changed) for node, item in found.items()}
    fractions = {wall: _fraction(analysis, wall, found) for wall in walls}
    edges = [
        (*sides, _price_of(analysis, wall, found, fractions[wall], online))
        for wall in walls
        for sides in _sides(analysis, wall, found)
    ]
    if online.forced:
        costs, joined = _counts(analysis, groups, found)
        edges += joined
    tied = {node for edge in edges for node in edge[:2]}
    changed = minimum_cut({node: pair for node, pair in costs.items() if node in tied}, edges)
    changed |= {node for node, (plain, other) in costs.items() if node not in tied and other < plain}
    for node in found.keys() - changed:
        del placement.offline[node]
    _share(analysis, walls, changed, found, placement)
    for wall in walls:
        between = _between(analysis.axes, wall, placement.offline)
        if between is not None:
            placement.boundaries[wall.name] = between, fractions[wall]


# -- one candidate for each space ------------------------------------------------------------------------------------


def candidates_of(
    analysis: Analysis, groups: Sequence[Siblings], online: Online, placement: Placement
) -> dict[AxisNode, Candidate]:  # fmt: skip
    """By space, the transform that serves its readers best, if any does, in the basis of those chosen before."""
    names = {space.node: space.id for space in analysis.spaces}
    found: dict[AxisNode, Candidate] = {}
    for number, (node, readers) in enumerate(_readers(analysis, groups).items()):
        kind = online.kind_for(readers, f"space {names.get(node, number)}")
        if not _allowed(node) or kind in ("none", "wush"):
            continue
        spread = np.linspace(0, len(readers) - 1, min(COMPARED, len(readers))).astype(int)
        compared = [readers[i] for i in spread]
        errors, transforms = _compare(analysis, node, compared, online, online.seed + number, placement.offline, kind)
        base = errors["none"]
        placement.errors[names.get(node, f"axis{number}")] = {n: e / base if base else 1.0 for n, e in errors.items()}
        name = list(transforms)[-1] if kind != "auto" and transforms else min(errors, key=errors.__getitem__)
        if name in transforms:
            scale = len(readers) / len(compared)
            before, after = placement.offline, placement.offline | {node: transforms[name]}
            plain, changed = (sum(online.best(g, c).cost for g in compared) * scale for c in (before, after))
            asked = WISH if kind in FORCED and not online.forced else 0.0
            found[node] = Candidate(transforms[name], readers, base * scale, plain + asked, changed)
            placement.offline[node] = transforms[name]
    return found


def _readers(analysis: Analysis, groups: Sequence[Siblings]) -> dict[AxisNode, list[Siblings]]:
    readers: dict[AxisNode, list[Siblings]] = defaultdict(list)
    for group in groups:
        for leaf in analysis.axes.leaves(group.ref):
            if leaf.node.size and leaf.node.size > 1 and leaf.mode is not Mode.PLAIN:
                readers[leaf.node].append(group)
    return readers


def _compare(
    analysis: Analysis, node: AxisNode, readers: Sequence[Siblings], online: Online, seed: int,
    chosen: Mapping[AxisNode, Transform], kind: str,
) -> tuple[dict[str, float], dict[str, Transform]]:  # fmt: skip
    """The error of the readers under each candidate, and the candidates."""

    def error(chosen: Mapping[AxisNode, Transform]) -> float:
        transforms = [axis_transform(analysis.axes, group.ref, chosen) for group in readers]
        return sum(
            online.probes[group].error(online.scheme(group), transform)
            for group, transform in zip(readers, transforms, strict=True)
        )

    assert node.size is not None  # no space has an axis of unknown size
    made = orthogonal_candidates(node.size, online.scheme(readers[0]), kind, seed, node.freedom, offline=True)
    return {"none": error(chosen)} | {name: error({**chosen, node: item}) for name, item in made.items()}, made


def _counts(
    analysis: Analysis, groups: Sequence[Siblings], found: Mapping[AxisNode, Candidate]
) -> tuple[dict[AxisNode, tuple[float, float]], list[tuple[AxisNode, AxisNode, float]]]:  # fmt: skip
    """With forced transforms: how many online ones a space saves, and the spaces that change together or not at all.

    The segments of one input do, because a transform in front of its readers would mix them. A little more than one
    for each input, so that of as many online transforms those that serve whole spaces are taken.
    """
    still, saved, joined = AxisNode(1), dict.fromkeys(found, 0.0), []
    for group in groups:
        segments = [analysis.axes.leaves(segment) for segment in analysis.axes.segments(group.ref)]
        nodes = [next((leaf.node for leaf in leaves if leaf.node in found), still) for leaves in segments]
        free = set(nodes) - {still}
        for node in free:
            saved[node] += (1 + 0.5 / (len(groups) + 1)) / len(free)
        joined += [(a, b, 2.0) for a, b in zip(nodes, nodes[1:], strict=False) if a is not b]
    return {node: (count, 0.0) for node, count in saved.items()}, joined


def _allowed(node: AxisNode) -> bool:
    return node.structure is Structure.LEAF and Freedom.ORTHOGONAL_ONES in node.freedom


# -- boundaries ------------------------------------------------------------------------------------------------------


def _of_side(analysis: Analysis, side: Ref, found: Mapping[AxisNode, Candidate]) -> list[AxisNode]:
    return [leaf.node for leaf in analysis.axes.leaves(side) if leaf.node in found]


def _sides(analysis: Analysis, wall: Boundary, found: Mapping[AxisNode, Candidate]) -> list[tuple[AxisNode, AxisNode]]:
    """The pairs of spaces of which both must change, or none, for the boundary to cost nothing."""
    if all(side.node.structure is Structure.LEAF for side in (wall.before, wall.after)):
        return [(wall.before.node, wall.after.node)]
    still = AxisNode(1)  # the parts of a product have no counterpart on the other side
    return [(node, still) for side in (wall.before, wall.after) for node in _of_side(analysis, side, found)]


def _fraction(analysis: Analysis, wall: Boundary, found: Mapping[AxisNode, Candidate]) -> float:
    """The arithmetic of an online transform at a boundary, relative to that of the sites of its spaces."""
    nodes = [node for side in (wall.before, wall.after) for node in _of_side(analysis, side, found)]
    work = sum(group.flops for node in nodes for group in found[node].readers)
    return max((found[node].transform.flops for node in nodes), default=0) / work if work else 0.0


def _price_of(
    analysis: Analysis, wall: Boundary, found: Mapping[AxisNode, Candidate], fraction: float, online: Online
) -> float:  # fmt: skip
    if online.forced:
        return 1.0
    nodes = {node for side in (wall.before, wall.after) for node in _of_side(analysis, side, found)}
    return (online.price * fraction + LEAST_GAIN) * sum(found[node].error for node in nodes)


def _between(axes: Axes, wall: Boundary, offline: Mapping[AxisNode, Transform]) -> Transform | None:
    """The transform from the basis before a boundary to the one behind it, ``None`` if they are the same."""
    from qcompile.transforms import Compose

    before, after = (axis_transform(axes, side, offline) for side in (wall.before, wall.after))
    if before is None or before is after:
        return None if before is after else after
    return before.inverse() if after is None else Compose((before.inverse(), after))


def _share(
    analysis: Analysis, walls: Sequence[Boundary], changed: set[AxisNode], found: Mapping[AxisNode, Candidate],
    placement: Placement,
) -> None:  # fmt: skip
    """Give changed spaces that only boundaries part one transform that all of them allow: nothing to compute there."""
    pairs = [sides for wall in walls for sides in _sides(analysis, wall, found) if changed.issuperset(sides)]
    for spaces in components(pairs):
        narrowest = min(spaces, key=lambda node: (Freedom.ORTHOGONAL in node.freedom, -len(found[node].readers)))
        placement.offline.update(dict.fromkeys(spaces, placement.offline[narrowest]))
