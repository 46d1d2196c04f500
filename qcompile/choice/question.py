"""The question that a choice answers, the answer, and the part of it that is left where transforms are given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qcompile.analysis.axes import AxisNode
from qcompile.analysis.folding import axis_transform
from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Analysis, Site
from qcompile.choice.assignment import Assignment, Option, assign
from qcompile.choice.placement import Placement, total_transform
from qcompile.choice.probe import Probe
from qcompile.choice.scoring import Probes, site_loss
from qcompile.targets.scheme import Scheme

if TYPE_CHECKING:
    from qcompile.transforms import Transform

__all__ = ["Asked", "Decided", "Table", "assign_alone", "rows_transform"]


@dataclass(frozen=True)
class Table:
    """An embedding table, which reads nothing: its rows lie in the basis of the space that they are written to."""

    site: Site
    probe: Probe


@dataclass(frozen=True)
class Asked:
    """A question: which schemes compete, at which costs, within which budgets.

    Args:
        names: of the schemes that compete.
        schemes: by group of sites, for each name, the schemes of its sites.
        costs: by group or table, for each name, what it takes of each budget.
        tables: embedding tables, with their schemes for each name.
        ties: pairs of groups or tables that read one weight, which has one format.
        budgets: the most that may be spent of each cost.
        bare: of the names, those under which nothing may stay in the graph: where that counts in a budget.
    """

    names: Sequence[str]
    schemes: Mapping[Siblings, Sequence[Sequence[Scheme]]]
    costs: Mapping[Siblings | Table, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    tables: Mapping[Table, Sequence[Scheme]] = field(default_factory=dict)
    ties: Sequence[tuple[Siblings | Table, Siblings | Table]] = ()
    budgets: Mapping[str, float] = field(default_factory=dict)
    bare: frozenset[int] = frozenset()

    def affords(self, index: int) -> bool:
        """Whether one scheme everywhere meets the budgets."""
        spent = {unit: math.fsum(costs[index].get(unit, 0.0) for costs in self.costs.values()) for unit in self.budgets}
        return all(spent[unit] <= bound * (1 + 1e-9) for unit, bound in self.budgets.items())


@dataclass(frozen=True)
class Decided:
    """The answer: the index into ``Asked.names`` by group or table; transforms went into the placement."""

    schemes: Mapping[Siblings | Table, int]
    assignment: Assignment


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
