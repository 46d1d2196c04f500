"""Chooses the transforms that fold into weights: one for each space that allows any, by the errors of its readers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np

from qcompile.axes import Mode, Node, Structure
from qcompile.boundaries import Boundary, boundaries, minimum_cut
from qcompile.candidates import LEAST_GAIN, orthogonal_candidates
from qcompile.folding import axis_transform
from qcompile.freedom import Freedom
from qcompile.groups import Group
from qcompile.scoring import group_error
from qcompile.spaces import Analysis
from qcompile.targets import Scheme

if TYPE_CHECKING:
    from qcompile.placement import Placement
    from qcompile.transforms import Transform

__all__ = ["place_offline"]

#: Groups of sites on which a space's candidates are compared; more change no choice that was seen.
COMPARED = 12


def place_offline(
    analysis: Analysis, groups: Sequence[Group], scheme: Callable, kind: str, price: float, seed: int,
    placement: Placement,
) -> None:  # fmt: skip
    readers: dict[Node, list[Group]] = defaultdict(list)
    for group in groups:
        for leaf in analysis.axes.leaves(group.ref):
            if leaf.node.size and leaf.node.size > 1 and leaf.mode is not Mode.PLAIN:
                readers[leaf.node].append(group)
    names = {space.node: space.id for space in analysis.spaces}
    rotated: dict[Node, tuple[float, float]] = {}
    for number, (node, group_list) in enumerate(readers.items()):
        if not _allowed(node) or kind == "wush":
            continue
        spread = np.linspace(0, len(group_list) - 1, min(COMPARED, len(group_list))).astype(int)
        compared = [group_list[i] for i in spread]
        candidates = orthogonal_candidates(node.size, scheme(compared[0]), kind, seed + number, node.freedom)
        best, errors = None, {"none": 1.0}
        base = least = sum(_error(analysis, g, scheme(g), placement.offline) for g in compared)
        for name, transform in candidates.items():
            error = sum(_error(analysis, g, scheme(g), placement.offline | {node: transform}) for g in compared)
            errors[name] = error / base if base else 1.0
            if kind != "auto" or error < least:
                best, least = transform, error
        placement.errors[names.get(node, f"axis{number}")] = errors
        if best is not None:
            placement.offline[node] = best
            rotated[node] = (base, least)
    _cut(analysis, readers, rotated, kind, price, placement)


def _cut(
    analysis: Analysis, readers: Mapping[Node, list[Group]], rotated: Mapping[Node, tuple[float, float]], kind: str,
    price: float, placement: Placement,
) -> None:  # fmt: skip
    """Decide which spaces beside boundaries change basis: their sites' errors against the online transforms there.

    With forced transforms all sites see a changed basis, and what counts is the number of online transforms: at the
    boundaries of a space, or one in front of each of its readers.
    """
    walls = [wall for wall in boundaries(analysis) if wall.before in rotated or wall.after in rotated]
    if not walls:
        return
    fractions = {}
    costs: dict[Node, tuple[float, float]] = {}
    edges = []
    for node, (base, least) in rotated.items():
        costs[node] = (base, least) if kind == "auto" else (float(len(readers[node])), 0.0)
    for wall in walls:
        sides = [side for side in (wall.before, wall.after) if side in rotated]
        work = sum(group.flops for side in sides for group in readers[side])
        fraction = fractions[wall.node.name] = max(placement.offline[side].flops for side in sides) / work
        worth = sum(rotated[side][0] for side in sides)
        edges.append((wall.before, wall.after, (price * fraction + LEAST_GAIN) * worth if kind == "auto" else 1.0))
    changed = minimum_cut(costs, edges)
    for node in rotated.keys() - changed:
        if any(node in (wall.before, wall.after) for wall in walls):
            del placement.offline[node]
    _share(walls, changed, readers, placement)
    for wall in walls:
        before, after = wall.before in changed, wall.after in changed
        if before != after:
            transform = placement.offline[wall.after] if after else placement.offline[wall.before].inverse()
            placement.boundaries[wall.node.name] = transform, fractions[wall.node.name]


def _share(
    walls: Sequence[Boundary], changed: set[Node], readers: Mapping[Node, list[Group]], placement: Placement
) -> None:
    """Give changed spaces that only boundaries part one transform that all of them allow: nothing to compute there."""
    graph = nx.Graph([(wall.before, wall.after) for wall in walls if {wall.before, wall.after} <= changed])
    for spaces in nx.connected_components(graph):
        narrowest = min(spaces, key=lambda node: (Freedom.ORTHOGONAL in node.freedom, -len(readers[node])))
        placement.offline.update(dict.fromkeys(spaces, placement.offline[narrowest]))


def _allowed(node: Node) -> bool:
    return node.structure is Structure.LEAF and Freedom.ORTHOGONAL_ONES in node.freedom


def _error(analysis: Analysis, group: Group, scheme: Scheme, offline: Mapping[Node, Transform]) -> float:
    return group_error(group.probes, group.alphas, scheme, axis_transform(analysis.axes, group.ref, offline))
