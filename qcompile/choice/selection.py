"""Chooses a scheme and a transform for every site, under budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import onnx_ir as ir

from qcompile.analysis.edges import edge_sites
from qcompile.analysis.siblings import Siblings, routes_of, shared_table, siblings_of
from qcompile.analysis.spaces import Analysis, Site
from qcompile.choice.assignment import Assignment, Option, assign
from qcompile.choice.costs import cost_of, mean_bits
from qcompile.choice.export_options import Options
from qcompile.choice.placement import Placement, total_transform
from qcompile.choice.scoring import Probes, probe, probes_of, site_error, site_loss
from qcompile.choice.transforms import place
from qcompile.choice.wishes import Wishes
from qcompile.ir.required import constant
from qcompile.notes import FITTED_TRANSFORM
from qcompile.run.data import Data
from qcompile.run.taps import visible
from qcompile.statistics.calibration import DEVICE_ROWS, FINE_ROWS, MAX_ROWS, Statistics
from qcompile.statistics.kept_statistics import kept_statistics
from qcompile.statistics.sensitivity import EVEN, Curvature
from qcompile.targets.eligible import quantizable
from qcompile.targets.scheme import Scheme
from qcompile.targets.target import Target
from qcompile.work import Work

if TYPE_CHECKING:
    from qcompile.notes import Decline, Progress
    from qcompile.transforms import Transform

__all__ = ["Choice", "choose"]


@dataclass
class Choice:
    """Schemes and transforms, what they were predicted to do, and on what.

    Args:
        siblings: the sites by the value that they read.
        tables: embedding tables, which read nothing.
        statistics: of the values that sites read, by name; empty where nothing depended on them.
        schemes: by site name.
        placement: the transforms.
        curvatures: what errors cost by site name, where that was measured.
        errors: predicted ``t²`` by site name.
        losses: the predicted growth of the metric by site name; ``errors`` where it is not known what they cost.
        plain_losses: the same without transforms, of sites that have some, if times are to be weighed against it.
        assignment: how schemes were assigned, where there was a choice.
        ties: by site name, the unit that got one scheme.
        wishes: of single sites.
    """

    siblings: list[Siblings]
    tables: list[Site]
    statistics: dict[str, Statistics]
    placement: Placement
    curvatures: dict[str, Curvature]
    schemes: dict[str, Scheme] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    plain_losses: dict[str, float] = field(default_factory=dict)
    assignment: Assignment | None = None
    ties: dict[str, str] = field(default_factory=dict)
    wishes: Wishes = field(default_factory=Wishes)


def _edges(model: ir.Model, sites: Sequence[Site]) -> tuple[set[str], set[str]]:
    """Sites at the edges, without and then with a weight that is read within the model as well."""
    found = edge_sites(model, sites)
    within = {site.stored for site in sites if site.name not in found}
    beside = {site.name for site in sites if site.name in found and site.stored in within}
    return found - beside, beside


def _settled(group: Siblings, plain_edge: Callable[[Site], bool]) -> bool:
    """Whether nothing is to be chosen for a group: not even the basis of a table that it shares."""
    return all(map(plain_edge, group.sites)) and shared_table(group) is None


def choose(
    analysis: Analysis, sites: Sequence[Site], target: Target, schemes: Sequence[Scheme], options: Options, data: Data,
    wishes: Wishes, decline: Decline, progress: Progress | None = None, work: Work | None = None,
) -> Choice:  # fmt: skip
    """Choose a scheme and a transform for every site; a budget counts those with a format of their own, too."""
    work = work or Work()
    edges, beside = _edges(analysis.model, sites)
    groups = siblings_of(sites)
    tables = [site for site in sites if site.input is None]
    several = len(schemes) > 1 or bool(options.budget)
    statistics = _statistics(
        analysis, groups, [*schemes, *wishes.schemes.values()], options, data, decline, progress, work
    )
    measured: dict[str, Curvature] = {}
    if several:
        from qcompile.statistics.curvature import measure_curvatures  # needs torch

        measured = measure_curvatures(
            analysis.model, sites, statistics, data, decline, options.seed, options.device, progress, work
        )
    first = schemes[0]
    edge = target.scheme(target.edge)

    def plain_edge(site: Site) -> bool:
        return site.name in edges and site.name not in wishes.schemes

    inner = [group for group in groups if several or not _settled(group, plain_edge)]
    probes = {group: probes_of(group, statistics.get(group.name), measured) for group in inner}
    few = not (data.random or data.held_out)
    placement = place(
        analysis, probes, lambda group: wishes.shared(group, first), kind=options.transforms,
        kinds=wishes.kinds_of(probes), statistics={} if few else statistics,
        fits=not data.random, price=target.transform_price, seed=options.seed, progress=progress,
    )  # fmt: skip
    if few and options.transforms in ("auto", "wush"):
        decline("*", FITTED_TRANSFORM, data.too_few)
    elif data.random and statistics and options.transforms == "auto":
        reason = "there is no calibration data, and what fits random inputs fits no others"
        decline("*", FITTED_TRANSFORM, reason)
    chosen = Choice(groups, tables, statistics, placement, measured, wishes=wishes)
    if several:
        _assign(analysis, probes, schemes, target, options, chosen)
    else:
        for site in sites:
            chosen.schemes[site.name] = wishes.scheme(site, edge if site.name in edges else first)
            if site.name in beside and edge.name != first.name:
                reason = "sites within the model read the same weight, which is stored once, in one format"
                decline(site.name, f"the format {edge.name} of the edge", reason)
            if plain_edge(site) and edge.name != first.name:
                reason = f"it stands at the edge of the model and is kept at {edge.name}; a budget would assign it too"
                decline(site.name, f"the format {first.name}", reason)
    probes |= {group: probes_of(group) for group in groups if group not in probes}
    _predict(analysis, probes, chosen, options.latency)
    return chosen


def _statistics(
    analysis: Analysis, groups: Sequence[Siblings], schemes: Sequence[Scheme], options: Options, data: Data,
    decline: Decline, progress: Progress | None, work: Work,
) -> dict[str, Statistics]:  # fmt: skip
    """Statistics of all site inputs, unless nothing that was asked for depends on them.

    They are the same whatever the target and whichever sites are left out, so that they can be used again.
    """
    needed = options.calibration is not None or any(scheme.activation for scheme in schemes)
    if not needed:
        return {}
    every = {group.name: group for own in (siblings_of(quantizable(analysis)[0]), groups) for group in own}
    shares = {name: routes_of(group) for name, group in every.items()} if options.method == "gptq" else {}
    routes = {name: found for name, found in shares.items() if found}
    wush = "wush" in (options.transforms, *options.transform_for.values())
    moments = wush or not data.random  # what random inputs teach is good for nothing else
    formats = (fmt for scheme in schemes for fmt in (scheme.weight, scheme.activation) if fmt is not None)
    rows = FINE_ROWS if all(fmt.bits >= 8 for fmt in formats) else MAX_ROWS
    rows = rows if options.device == "cpu" else DEVICE_ROWS
    found = kept_statistics(
        work, analysis.model, {name: group.axis for name, group in every.items()}, data,
        wanted=[group.name for group in groups], routes=routes, max_rows=rows, moments=moments, device=options.device,
        memory=options.memory, decline=decline, progress=progress,
    )  # fmt: skip
    for group in (group for group in groups if group.name not in found):
        why = f"{data.about} never reaches it"
        if group.nested and group.name not in visible(analysis.model, [group.name]):
            why = "the body that it stands in may read another number of rows at every step"
        for site in group.sites:
            decline(site.name, "calibrating it", why)
    return found


def _assign(
    analysis: Analysis, probes: Mapping[Siblings, Probes], schemes: Sequence[Scheme], target: Target,
    options: Options, chosen: Choice,
) -> None:  # fmt: skip
    """Give siblings, and sites that share a weight, one scheme, so that the loss is least within the budgets."""
    units: list[tuple[list[Site], list[Option]]] = []
    scheme_of = chosen.wishes.scheme
    first: dict[ir.Value, int] = {}  # by weight, the unit that pays for storing it
    readers: list[tuple[int, int]] = []  # units that read one weight, which has one format

    def add(sites: list[Site], loss: Callable[[Scheme], float]) -> None:
        own = {site.name for site in sites if first.setdefault(site.stored, len(units)) == len(units)}
        readers.extend((first[site.stored], len(units)) for site in sites)
        costs = [cost_of([(site, scheme_of(site, s)) for site in sites], own, target) for s in schemes]
        units.append((sites, [Option(s.name, loss(s), cost) for s, cost in zip(schemes, costs, strict=True)]))

    for group, own in probes.items():
        transform = total_transform(analysis, group, chosen.placement)
        add(group.sites, partial(_loss, group, own, transform, scheme_of))
    for site in chosen.tables:
        alone = Siblings(site.weight, site.name, site.ref_out, [site])
        table = Probes((probe(site, None, chosen.curvatures[site.name]),))
        add([site], partial(_loss, alone, table, None, lambda site, scheme: Scheme(scheme_of(site, scheme).weight)))
    weights = sum(constant(weight).size for weight in first)
    means = [[mean_bits(option, weights) for option in found] for _, found in units]
    joined = [pair for pair in dict.fromkeys(readers) if pair[0] != pair[1]]
    chosen.assignment = assign(means, options.budget, joined)
    by_name = {scheme.name: scheme for scheme in schemes}
    for number, ((sites, found), index) in enumerate(zip(units, chosen.assignment.choice, strict=True)):
        for site in sites:
            scheme = scheme_of(site, by_name[found[index].name])
            chosen.schemes[site.name] = Scheme(scheme.weight) if site.input is None else scheme
            chosen.ties[site.name] = f"t{number}"


def _loss(
    group: Siblings, own: Probes, transform: Transform | None, scheme_of: Callable[[Site, Scheme], Scheme],
    scheme: Scheme,
) -> float:  # fmt: skip
    pairs = zip(group.sites, own.items, strict=True)
    return sum(site_loss(item, scheme_of(site, scheme), transform) for site, item in pairs)


def _predict(analysis: Analysis, probes: Mapping[Siblings, Probes], chosen: Choice, plain: bool) -> None:
    for group, own in probes.items():
        transform = total_transform(analysis, group, chosen.placement)
        for site, item in zip(group.sites, own.items, strict=True):
            scheme = chosen.schemes[site.name]
            chosen.errors[site.name] = site_error(item, scheme, transform)
            chosen.losses[site.name] = site_loss(item, scheme, transform)
            if plain and transform is not None:
                chosen.plain_losses[site.name] = site_loss(item, scheme)
    for site in chosen.tables:
        scheme = Scheme(chosen.schemes[site.name].weight)
        item = probe(site, None, chosen.curvatures.get(site.name, EVEN))
        chosen.errors[site.name], chosen.losses[site.name] = site_error(item, scheme), site_loss(item, scheme)
