"""Transforms and formats of a whole graph, decided at once: spaces, the groups that read them, tables, boundaries."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qcompile.analysis.axes import AxisNode
from qcompile.analysis.boundaries import boundaries
from qcompile.analysis.siblings import Siblings, shared_table
from qcompile.analysis.spaces import Analysis
from qcompile.choice.assignment import Option
from qcompile.choice.contenders import OnlineChoice
from qcompile.choice.joint import Decision, Joint, Unit
from qcompile.choice.labels import WISH, Labels
from qcompile.choice.online import Online
from qcompile.choice.placement import Placement, Worth, total_transform
from qcompile.choice.question import Asked, Decided, Table, rows_transform
from qcompile.choice.scoring import site_loss
from qcompile.choice.solving import decide
from qcompile.choice.walls import Walls
from qcompile.group.group import ALONE, Group

if TYPE_CHECKING:
    from qcompile.notes import Progress
    from qcompile.transforms import Transform

__all__ = ["Posed", "pose"]


def pose(
    analysis: Analysis, asked: Asked, online: Online, labels: Mapping[AxisNode, Labels],
    partners: Mapping[Siblings, Siblings | None], progress: Progress | None = None, group: Group = ALONE,
) -> Posed:  # fmt: skip
    """The choice of a label for every space, a scheme for every group and table, an online transform where one pays.

    Args:
        asked: the schemes that compete, and budgets.
        online: chooses what stands in front of a group, given what folds.
        labels: the transforms that may fold, by space.
        partners: by group, the one that decides on its online transform; ``None`` where it can have none.
        group: the processes that share the units.
    """
    graph = _Graph(analysis, asked, online, labels, partners, group)

    def measured(own: Sequence[Sequence[Siblings | Table]]) -> Iterator[Unit]:
        for done, members in enumerate(own):
            yield graph.unit(members)
            online.forget([group for group in members if isinstance(group, Siblings)])
            if progress is not None:
                progress("choosing transforms", done + 1, len(own))

    units = group.spread(graph.members, measured)
    at = {item: number for number, members in enumerate(graph.members) for item in members}
    ties = [(at[a], at[b]) for a, b in asked.ties if at[a] != at[b]]
    own = [item.losses for item in labels.values()]
    return Posed(graph, Joint(own, units, [wall for _, wall in graph.walls.found()], asked.budgets, ties))


@dataclass(frozen=True)
class Posed:
    """A choice with all that was measured for it: budgets cost no more than solving it again."""

    graph: _Graph
    problem: Joint

    def decide(self, placement: Placement, budgets: Mapping[str, float] | None = None) -> Decided:
        """Decide within those budgets, or within those that were asked for, and put transforms into the placement.

        Raises:
            InputError: if the budgets cannot be met.
        """
        problem = self.problem if budgets is None else replace(self.problem, budgets=budgets)
        found, graph = decide(problem), self.graph
        graph.settle(found, placement)
        if not graph.online.forced:  # those were not compared
            graph.tell(problem, found, placement)
        named = zip(graph.members, found.options, strict=True)
        schemes = {item: graph.asked.names.index(option.name) for members, option in named for item in members}
        return Decided(schemes, found.assignment)

    def spent(self, decided: Decided) -> dict[str, float]:
        """The cost in every unit, budget or not."""
        costs, chosen = self.graph.asked.costs, decided.schemes.items()
        spent = {unit: math.fsum(costs[item][index][unit] for item, index in chosen) for unit in self.graph.units}
        return spent | decided.assignment.cost  # where transforms count as well

    def loss(self, decided: Decided, placement: Placement) -> float:
        """The predicted growth of the metric, without the price of what stays in the graph."""
        return math.fsum(self.graph.predicted(item, index, placement) for item, index in decided.schemes.items())


class _Graph:
    """A graph as the problem of ``joint`` sees it."""

    def __init__(
        self, analysis: Analysis, asked: Asked, online: Online, labels: Mapping[AxisNode, Labels],
        partners: Mapping[Siblings, Siblings | None], shared: Group,
    ) -> None:  # fmt: skip
        self._shared = shared
        self.analysis, self.asked, self.online, self.labels, self.partners = analysis, asked, online, labels, partners
        self.nodes = list(labels)
        self.number = {node: number for number, node in enumerate(self.nodes)}
        self.walls = Walls(analysis, online, labels, self.number)
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
                Option(name, *self._loss_and_cost(members, chosen, index))
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

    @property
    def units(self) -> Sequence[str]:
        """The units of costs."""
        return list(next((found[0] for found in self.asked.costs.values()), {}))

    def _cost(self, members: Sequence[Siblings | Table], index: int) -> dict[str, float]:
        return {unit: math.fsum(self.asked.costs[item][index][unit] for item in members) for unit in self.units}

    def predicted(self, item: Siblings | Table, index: int, placement: Placement) -> float:
        """The loss of a group or table where transforms are placed."""
        if isinstance(item, Table):
            return self._of_table(item, placement.offline, index)
        transform = total_transform(self.analysis, item, placement)
        return self.online.probes[item].error(self.asked.schemes[item][index], transform)

    def _loss_and_cost(
        self, members: Sequence[Siblings | Table], chosen: Mapping[AxisNode, Transform], index: int
    ) -> tuple[float, dict[str, float]]:  # fmt: skip
        first, *others = members
        cost = self._cost(members, index)
        if isinstance(first, Table):
            return self._of_table(first, chosen, index), cost
        choice = self.best(first, chosen, index)
        total = choice.cost + self._mixed(first, chosen)
        for group in others:
            assert isinstance(group, Siblings)  # tables stand alone
            total += self._follows(group, choice, chosen, index)
        if choice.transform is not None and "latency" in cost:
            groups = [group for group in members if isinstance(group, Siblings)]
            cost["latency"] += 1e3 * math.fsum(self.online.price.seconds(own, choice.transform) for own in groups)
        return total, cost

    def best(self, group: Siblings, chosen: Mapping[AxisNode, Transform], index: int) -> OnlineChoice:
        """The transform in front of a group in a scheme that competes."""
        return self.online.best(group, chosen, self.asked.schemes[group][index], bare=index in self.asked.bare)

    def _of_table(self, table: Table, chosen: Mapping[AxisNode, Transform], index: int) -> float:
        turned = rows_transform(self.analysis, table.site, chosen)
        return site_loss(table.probe, self.asked.tables[table][index], turned)

    def _follows(
        self, group: Siblings, choice: OnlineChoice, chosen: Mapping[AxisNode, Transform], index: int
    ) -> float:  # fmt: skip
        """The loss of a group under the online transform of the one whose weight it shares."""
        if self.online.forced:
            return self._mixed(group, chosen)
        offline = self.online.offline(group.ref, chosen)
        return self.online.behind_another(group, choice, offline, self.asked.schemes[group][index])

    def _mixed(self, group: Siblings, chosen: Mapping[AxisNode, Transform]) -> float:
        """With forced transforms, the cost of some segments of an input changing where others do not.

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

    # -- the solution --------------------------------------------------------------------------------------------------

    def settle(self, found: Decision, placement: Placement) -> None:
        """Put the chosen transforms into the placement."""
        labelled = dict(zip(self.nodes, found.labels, strict=True))
        placement.offline.update(self._chosen(labelled))

        def best(own: Sequence[tuple[Sequence[Siblings | Table], Option]]) -> Iterator[OnlineChoice | None]:
            for (first, *_), option in own:
                if isinstance(first, Table):
                    yield None
                    continue
                yield self.best(first, placement.offline, self.asked.names.index(option.name))

        pairs = list(zip(self.members, found.options, strict=True))  # each process has measured its own already
        for members, choice in zip(self.members, self._shared.spread(pairs, best), strict=True):
            if choice is not None:
                self._place(members, choice, placement)
        for wall in boundaries(self.analysis):
            between = self.walls.between(wall, placement.offline)
            if between is not None:
                placement.boundaries[wall.name] = between, self.walls.fraction(wall)

    def tell(self, problem: Joint, found: Decision, placement: Placement) -> None:
        """Say what the label of each space was worth with all else as it is, and the scheme of each unit."""
        ids = {space.node: space.id for space in self.analysis.spaces}
        for number, (node, labels) in enumerate(self.labels.items()):
            losses = {}
            for label, name in enumerate(labels.transforms):
                changed = [*found.labels[:number], label, *found.labels[number + 1 :]]
                read = [(u, o) for u, o in zip(problem.units, found.options, strict=True) if number in u.spaces]
                lost = (unit.loss(changed, option.name) for unit, option in read)
                losses[name] = math.fsum(lost) + problem.fixed(changed) - problem.fixed(found.labels)
            worth = Worth.of(losses, list(labels.transforms)[found.labels[number]])
            if worth is not None and worth.other_loss < WISH:
                placement.worth[ids.get(node, f"axis{number}")] = worth
        for members, unit, option in zip(self.members, problem.units, found.options, strict=True):
            worth = Worth.of({name: unit.loss(found.labels, name) for name in self.asked.names}, option.name)
            if worth is not None:
                first = members[0]
                placement.schemes[first.site.name if isinstance(first, Table) else first.name] = worth

    def _place(self, members: Sequence[Siblings | Table], choice: OnlineChoice, placement: Placement) -> None:
        first = members[0]
        assert isinstance(first, Siblings)
        if choice.errors:
            placement.errors[first.name] = dict(choice.errors)
        if choice.worth is not None:
            placement.worth[first.name] = choice.worth
        if choice.unproven is not None:
            placement.unproven[first.name] = choice.unproven
        if choice.skipped is not None:
            placement.skipped[first.name] = choice.skipped
        if choice.behind is not None:
            placement.behind[first.name] = choice.behind
        if choice.transform is not None:
            placement.online.update((item.name, choice.transform) for item in members if isinstance(item, Siblings))
