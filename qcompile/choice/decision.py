"""Transforms and formats of a whole graph, decided at once: spaces, the groups that read them, tables, boundaries."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qcompile.analysis.axes import AxisNode
from qcompile.analysis.boundaries import Boundary, boundaries
from qcompile.analysis.folding import axis_transform
from qcompile.analysis.siblings import Siblings, shared_table
from qcompile.analysis.spaces import Analysis, Site
from qcompile.choice.assignment import Assignment, Option, assign
from qcompile.choice.candidates import LEAST_GAIN
from qcompile.choice.joint import Decision, Joint, Unit, Wall
from qcompile.choice.labels import Labels, sides_of
from qcompile.choice.online import Online, OnlineChoice
from qcompile.choice.placement import Placement, total_transform
from qcompile.choice.scoring import Probe, Probes, site_loss
from qcompile.choice.solving import decide
from qcompile.targets.scheme import Scheme

if TYPE_CHECKING:
    from qcompile.notes import Progress
    from qcompile.transforms import Transform

__all__ = ["Asked", "Decided", "Table", "assign_alone", "decide_all", "rows_transform"]


@dataclass(frozen=True)
class Table:
    """An embedding table, which reads nothing: its rows lie in the basis of the space that they are written to."""

    site: Site
    probe: Probe


@dataclass(frozen=True)
class Asked:
    """The question that is decided.

    Args:
        names: of the schemes that compete.
        schemes: by group of sites, for each name, the schemes of its sites.
        costs: by group or table, for each name, what it takes of each budget.
        tables: embedding tables, with their schemes for each name.
        ties: pairs of groups or tables that read one weight, which has one format.
        budgets: the most that may be spent of each cost.
    """

    names: Sequence[str]
    schemes: Mapping[Siblings, Sequence[Sequence[Scheme]]]
    costs: Mapping[Siblings | Table, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    tables: Mapping[Table, Sequence[Scheme]] = field(default_factory=dict)
    ties: Sequence[tuple[Siblings | Table, Siblings | Table]] = ()
    budgets: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Decided:
    """The decision: the index into ``Asked.names`` by group or table; transforms went into the placement."""

    schemes: Mapping[Siblings | Table, int]
    assignment: Assignment


def decide_all(
    analysis: Analysis, asked: Asked, online: Online, labels: Mapping[AxisNode, Labels],
    partners: Mapping[Siblings, Siblings | None], placement: Placement, progress: Progress | None = None,
) -> Decided:  # fmt: skip
    """Choose a label for every space, a scheme for every group and table, an online transform where one pays.

    Args:
        asked: the schemes that compete, and budgets.
        online: chooses what stands in front of a group, given what folds.
        labels: the transforms that may fold, by space.
        partners: by group, the one that decides on its online transform; ``None`` where it can have none.
        placement: takes the transforms in.
    """
    graph = _Graph(analysis, asked, online, labels, partners)
    units = []
    for done, members in enumerate(graph.members):
        units.append(graph.unit(members))
        if progress is not None:
            progress("choosing transforms", done + 1, len(graph.members))
    walls = graph.walls()
    at = {item: number for number, members in enumerate(graph.members) for item in members}
    ties = [(at[a], at[b]) for a, b in asked.ties if at[a] != at[b]]
    own = [item.losses for item in labels.values()]
    found = decide(Joint(own, units, [wall for _, wall in walls], asked.budgets, ties))
    graph.settle(found, placement)
    schemes = {item: asked.names.index(found.options[number].name) for item, number in at.items()}
    return Decided(schemes, found.assignment)


class _Graph:
    """A graph as the problem of ``joint`` sees it."""

    def __init__(
        self, analysis: Analysis, asked: Asked, online: Online, labels: Mapping[AxisNode, Labels],
        partners: Mapping[Siblings, Siblings | None],
    ) -> None:  # fmt: skip
        self.analysis, self.asked, self.online, self.labels, self.partners = analysis, asked, online, labels, partners
        self.nodes = list(labels)
        self.number = {node: number for number, node in enumerate(self.nodes)}
        led: dict[Siblings, list[Siblings | Table]] = {}
        for group in asked.schemes:
            led.setdefault(partners.get(group) or group, []).append(group)
        self.members = list(led.values())
        self.members += [[table] for table in asked.tables]

    def unit(self, members: Sequence[Siblings | Table]) -> Unit:
        """The options of groups that have one online transform and one scheme, or of a table."""
        nodes = self._nodes(members)
        options: dict[tuple[int, ...], list[Option]] = {}
        for own in itertools.product(*(range(len(self.labels[node].transforms)) for node in nodes)):
            chosen = self._chosen(dict(zip(nodes, own, strict=True)))
            options[own] = [
                Option(name, self._loss(members, chosen, index), self._cost(members, index))
                for index, name in enumerate(self.asked.names)
            ]
        return Unit(tuple(self.number[node] for node in nodes), options)

    def _nodes(self, members: Sequence[Siblings | Table]) -> list[AxisNode]:
        refs = []
        for item in members:
            if isinstance(item, Table):
                refs.append(item.site.ref_out)
            else:
                table = shared_table(item)
                refs += [item.ref] if table is None else [item.ref, self.analysis.refs(table)[1]]
        leaves = {leaf.node for ref in refs for leaf in self.analysis.axes.leaves(ref)}
        return [node for node in self.nodes if node in leaves]

    def _chosen(self, own: Mapping[AxisNode, int]) -> dict[AxisNode, Transform]:
        found = {node: list(self.labels[node].transforms.values())[label] for node, label in own.items()}
        return {node: transform for node, transform in found.items() if transform is not None}

    def _cost(self, members: Sequence[Siblings | Table], index: int) -> dict[str, float]:
        found = [self.asked.costs[item][index] for item in members if item in self.asked.costs]
        return {unit: math.fsum(cost[unit] for cost in found) for unit in self.asked.budgets}

    def _loss(self, members: Sequence[Siblings | Table], chosen: Mapping[AxisNode, Transform], index: int) -> float:
        first, *others = members
        if isinstance(first, Table):
            return self._of_table(first, chosen, index)
        choice = self.online.best(first, chosen, self.asked.schemes[first][index])
        total = choice.cost + self._mixed(first, chosen)
        for group in others:
            assert isinstance(group, Siblings)  # tables stand alone
            total += self._follows(group, choice, chosen, index)
        return total

    def _of_table(self, table: Table, chosen: Mapping[AxisNode, Transform], index: int) -> float:
        turned = rows_transform(self.analysis, table.site, chosen)
        return site_loss(table.probe, self.asked.tables[table][index], turned)

    def _follows(
        self, group: Siblings, choice: OnlineChoice, chosen: Mapping[AxisNode, Transform], index: int
    ) -> float:  # fmt: skip
        """What a group loses under the online transform of the one whose weight it shares."""
        if self.online.forced:
            return self._mixed(group, chosen)
        offline = self.online.offline(group.ref, chosen)
        return self.online.behind_another(group, choice, offline, self.asked.schemes[group][index])

    def _mixed(self, group: Siblings, chosen: Mapping[AxisNode, Transform]) -> float:
        """With forced transforms, what it costs that some segments of an input change, and others do not.

        A transform in front of its readers would mix them. An online transform counts a little more than one, so that
        of as many those that serve whole spaces are taken.
        """
        if not self.online.forced:
            return 0.0
        segments = [self.analysis.axes.leaves(segment) for segment in self.analysis.axes.segments(group.ref)]
        changed = [any(leaf.node in chosen for leaf in leaves) for leaves in segments]
        if not any(changed):
            return 0.5 / (len(self.asked.schemes) + 1)
        return 1.0 + 2.0 * sum(a != b for a, b in itertools.pairwise(changed)) if not all(changed) else 0.0

    # -- boundaries ----------------------------------------------------------------------------------------------------

    def walls(self) -> list[tuple[Boundary, Wall]]:
        """Where two spaces meet that may have bases that differ, at the price of an online transform."""
        found = []
        for wall in boundaries(self.analysis):
            for before, after in sides_of(self.analysis, wall):
                sides = [self.number.get(node) if node is not None else None for node in (before, after)]
                if sides[0] is not None or sides[1] is not None:
                    alike = frozenset() if None in sides else self._alike(before, after)
                    found.append((wall, Wall(sides[0], sides[1], self._price(wall), alike)))
        return found

    def _alike(self, before: AxisNode | None, after: AxisNode | None) -> frozenset[tuple[int, int]]:
        """The pairs of labels that are one transform."""
        if before is None or after is None:
            return frozenset()
        one, other = ([*self.labels[node].transforms.values()] for node in (before, after))
        return frozenset((i, j) for i, a in enumerate(one) for j, b in enumerate(other) if a is b)

    def _of_sides(self, wall: Boundary) -> list[AxisNode]:
        leaves = [leaf.node for side in (wall.before, wall.after) for leaf in self.analysis.axes.leaves(side)]
        return [node for node in leaves if node in self.labels]

    def _fraction(self, wall: Boundary) -> float:
        """The arithmetic of an online transform at a boundary, relative to that of the sites of its spaces."""
        nodes = self._of_sides(wall)
        work = sum(group.flops for node in nodes for group in self.labels[node].readers)
        made = [t for node in nodes for t in self.labels[node].transforms.values() if t is not None]
        return max((transform.flops for transform in made), default=0) / work if work else 0.0

    def _price(self, wall: Boundary) -> float:
        if self.online.forced:
            return 1.0
        lost = sum(self.labels[node].error for node in set(self._of_sides(wall)))
        return (self.online.price * self._fraction(wall) + LEAST_GAIN) * lost

    # -- the solution --------------------------------------------------------------------------------------------------

    def settle(self, found: Decision, placement: Placement) -> None:
        """Put the chosen transforms into the placement."""
        labelled = dict(zip(self.nodes, found.labels, strict=True))
        placement.offline.update(self._chosen(labelled))
        for members, option in zip(self.members, found.options, strict=True):
            first = members[0]
            if isinstance(first, Siblings):
                index = self.asked.names.index(option.name)
                self._place(members, self.online.best(first, placement.offline, self.asked.schemes[first][index]),
                            placement)  # fmt: skip
        for wall in boundaries(self.analysis):
            between = _between(self.analysis, wall, placement.offline)
            if between is not None:
                placement.boundaries[wall.name] = between, self._fraction(wall)

    def _place(self, members: Sequence[Siblings | Table], choice: OnlineChoice, placement: Placement) -> None:
        first = members[0]
        assert isinstance(first, Siblings)
        if choice.errors:
            placement.errors[first.name] = dict(choice.errors)
        if choice.unproven is not None:
            placement.unproven[first.name] = choice.unproven
        if choice.skipped is not None:
            placement.skipped[first.name] = choice.skipped
        if choice.behind is not None:
            placement.behind[first.name] = choice.behind
        if choice.transform is not None:
            placement.online.update((item.name, choice.transform) for item in members if isinstance(item, Siblings))


def rows_transform(analysis: Analysis, table: Site, offline: Mapping[AxisNode, Transform]) -> Transform | None:
    """The transform that predictions take for a table: its rows are written in a basis, not read."""
    out = axis_transform(analysis.axes, table.ref_out, offline)
    return None if out is None else out.dual()


def assign_alone(
    analysis: Analysis, probes: Mapping[Siblings, Probes], asked: Asked, placement: Placement
) -> Decided:  # fmt: skip
    """Choose a scheme for every group and table where transforms are placed already."""

    def loss(item: Siblings | Table, index: int) -> float:
        if isinstance(item, Table):
            turned = rows_transform(analysis, item.site, placement.offline)
            return site_loss(item.probe, asked.tables[item][index], turned)
        return probes[item].error(asked.schemes[item][index], total_transform(analysis, item, placement))

    items: list[Siblings | Table] = [*asked.schemes, *asked.tables]
    at = {item: number for number, item in enumerate(items)}
    options = [
        [Option(name, loss(item, i), asked.costs[item][i]) for i, name in enumerate(asked.names)] for item in items
    ]
    found = assign(options, asked.budgets, [(at[a], at[b]) for a, b in asked.ties])
    return Decided(dict(zip(items, found.choice, strict=True)), found)


def _between(analysis: Analysis, wall: Boundary, offline: Mapping[AxisNode, Transform]) -> Transform | None:
    """The transform from the basis before a boundary to the one behind it, ``None`` if they are the same."""
    from qcompile.transforms import Compose

    before, after = (axis_transform(analysis.axes, side, offline) for side in (wall.before, wall.after))
    if before is None or before is after:
        return None if before is after else after
    return before.inverse() if after is None else Compose((before.inverse(), after))
