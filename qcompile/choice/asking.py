"""Puts the question that a choice answers: the schemes that compete at every site, and what each costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Site
from qcompile.choice.costs import cost_of
from qcompile.choice.probe import probe
from qcompile.choice.question import Asked, Table
from qcompile.choice.scoring import Probes
from qcompile.choice.splits import beside
from qcompile.choice.wishes import Wishes
from qcompile.ir.required import constant
from qcompile.prices.graph_clock import GraphClock
from qcompile.statistics.sensitivity import Curvature
from qcompile.targets.scheme import FLOAT, Scheme
from qcompile.targets.target import Target

__all__ = ["asked_of", "of_one"]

#: Behind the name of a scheme that competes without what would stay in the graph.
BARE = ", nothing online"


def of_one(probes: Mapping[Siblings, Probes], scheme: Scheme, wishes: Wishes) -> Asked:
    """Transforms alone are asked for, for one scheme."""
    return Asked([scheme.name], {group: [[wishes.shared(group, scheme)] * len(group.sites)] for group in probes})


def asked_of(
    probes: Mapping[Siblings, Probes], schemes: Sequence[Scheme], target: Target, budget: Mapping[str, float],
    wishes: Wishes, of_tables: Mapping[Site, Curvature], clock: GraphClock | None, every: Sequence[Siblings],
) -> Asked:  # fmt: skip
    """Schemes are asked for, with what each costs: a weight is paid by the first that reads it.

    Where the time is bounded and known, each scheme competes twice: with what may stay in the graph, and without.

    Args:
        of_tables: embedding tables, and what their errors cost.
        clock: tells the time; ``None`` for an estimate by bytes.
        every: all sites of the graph that read anything.
    """
    wish = wishes.scheme
    bare = frozenset(range(len(schemes), 2 * len(schemes))) if "latency" in budget and clock else frozenset()
    competing = [*schemes, *schemes] if bare else [*schemes]
    first: dict[ir.Value, Siblings | Table] = {}
    ties: list[tuple[Siblings | Table, Siblings | Table]] = []
    tables = [Table(site, probe(site, None, costs_of)) for site, costs_of in of_tables.items()]
    costs: dict[Siblings | Table, list[dict[str, float]]] = {}
    items: list[Siblings | Table] = [*probes, *tables]
    for item in items:
        sites = [item.site] if isinstance(item, Table) else item.sites
        own = {site.name for site in sites if first.setdefault(site.stored, item) is item}
        ties += [(first[site.stored], item) for site in sites if first[site.stored] is not item]
        costs[item] = [cost_of([(site, wish(site, s)) for site in sites], own, target, clock) for s in competing]
    whole = [site for group in probes for site in group.sites if not beside(site.node)]
    weights = max(sum({site.stored: constant(site.stored).size for site in [*whole, *of_tables]}.values()), 1)
    products = max(sum(constant(site.weight).size for site in whole), 1)
    if clock is not None and costs:  # what is no site that competes takes its time in any case
        asked = {site.name for group in probes for site in group.sites}
        others = ([site for site in own.sites if site.name not in asked] for own in every)
        fixed = clock.rest + math.fsum(clock.products((site, FLOAT) for site in own) for own in others if own)
        for cost in next(iter(costs.values())):
            cost["latency"] += 1e3 * fixed
    for found in costs.values():  # means are what is bounded
        found[:] = [{**cost, "bits": cost["bits"] / weights, "bops": cost["bops"] / products} for cost in found]
    return Asked(
        [scheme.name + (BARE if i in bare else "") for i, scheme in enumerate(competing)],
        {group: [[wish(site, s) for site in group.sites] for s in competing] for group in probes},
        costs, {table: [Scheme(wish(table.site, s).weight) for s in competing] for table in tables},
        list(dict.fromkeys(ties)), budget, bare,
    )  # fmt: skip
