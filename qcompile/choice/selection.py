"""Chooses a scheme and a transform for every site, under budgets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import onnx_ir as ir

from qcompile.analysis.edges import edge_sites
from qcompile.analysis.siblings import Siblings, routes_of, shared_table, siblings_of
from qcompile.analysis.spaces import Analysis, Site
from qcompile.choice.asking import asked_of, of_one
from qcompile.choice.assignment import Assignment
from qcompile.choice.compensation import LastMoment
from qcompile.choice.decision import Posed
from qcompile.choice.exchange import Share
from qcompile.choice.export_options import Options
from qcompile.choice.kinds import FITTED, FREE
from qcompile.choice.placement import Placement, total_transform
from qcompile.choice.probe import probe
from qcompile.choice.question import Asked, Table, assign_alone, rows_transform
from qcompile.choice.scoring import Probes, probes_of, site_error, site_loss
from qcompile.choice.staying import STAYING
from qcompile.choice.timing import Timing, clock_of, timing_of
from qcompile.choice.transforms import pose_choice
from qcompile.choice.wishes import Wishes
from qcompile.group.group import Group
from qcompile.notes import FITTED_TRANSFORM
from qcompile.prices.graph_clock import GraphClock
from qcompile.rounding.methods import method_of
from qcompile.run.data import Data
from qcompile.run.taps import visible
from qcompile.statistics.calibration import DEVICE_ROWS, FINE_ROWS, MAX_ROWS
from qcompile.statistics.collected import Statistics
from qcompile.statistics.kept_statistics import kept_statistics
from qcompile.statistics.measures import measured
from qcompile.statistics.sensitivity import EVEN, Curvature
from qcompile.targets.eligible import quantizable
from qcompile.targets.scheme import Scheme
from qcompile.targets.target import Target
from qcompile.threads import alone
from qcompile.work import Work

if TYPE_CHECKING:
    from qcompile.choice.trial import Contest
    from qcompile.notes import Decline, Progress

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
        uniform: schemes by site, by the name of each that meets the budgets alone.
        contest: how it did beside simpler choices, where that was tried.
        timing: the time that it is predicted to take; ``None`` where nobody measured what computing costs.
        posed: the decision, to be made again under other budgets; ``None`` where transforms were forced.
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
    uniform: Mapping[str, Mapping[str, Scheme]] = field(default_factory=dict)
    contest: Contest | None = None
    timing: Timing | None = None
    posed: Posed | None = None

    def forget(self) -> None:
        """Drop what only choosing needs: it is large."""
        self.posed = None
        self.curvatures = {name: replace(own, felt=None) for name, own in self.curvatures.items()}


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
    several = len(schemes) > 1 or bool(options.weight_budget)
    statistics = _statistics(
        analysis, groups, [*schemes, *wishes.schemes.values()], options, data, decline, progress, work
    )
    costs: dict[str, Curvature] = {}
    if several or (options.transforms == "auto" and statistics and not data.random):
        costs = measured(
            options.sensitivity, analysis.model, sites, statistics, data, decline, seed=options.seed,
            device=options.device, progress=progress, work=work, group=options.group, noise=several,
        )  # fmt: skip
    first, edge = schemes[0], target.scheme(target.edge)
    if edge.activation is not None and edge.weight == first.weight:
        edge = first  # it would keep no bits, and inputs were asked to be rounded in that way

    def plain_edge(site: Site) -> bool:
        return site.name in edges and site.name not in wishes.schemes

    inner = [group for group in groups if several or not _settled(group, plain_edge)]
    learned = LastMoment(options.device) if method_of(options.method).walks and data.held_out else None
    probes = {
        group: probes_of(group, statistics.get(group.name), costs, learned=learned, device=options.device)
        for group in inner
    }
    few = not (data.random or data.held_out)
    chosen = Choice(groups, tables, statistics, Placement({}, {}), costs, wishes=wishes)
    clock = clock_of(analysis, target, options, data, decline)
    choices = partial(
        _choices, analysis, probes, target, options, chosen, clock, kinds=wishes.kinds_of(probes),
        statistics={} if few else statistics, fits=not data.random, progress=progress,
    )  # fmt: skip
    if target.online != "any":
        decline("*", "online transforms of any form", STAYING[target.online])
    if few and options.transforms in ("auto", *FITTED):
        decline("*", FITTED_TRANSFORM, data.too_few)
    elif data.random and statistics and options.transforms == "auto":
        decline("*", FITTED_TRANSFORM, "there is no calibration data, and what fits random inputs fits no others")
    with alone():  # thousands of small steps, which no team makes faster; large ones go to a GPU where there is one
        choices(schemes if several else [first])
    if not several:
        for site in sites:
            chosen.schemes[site.name] = wishes.scheme(site, edge if site.name in edges else first)
            if site.name in beside and edge.name != first.name:
                reason = "sites within the model read the same weight, which is stored once, in one format"
                decline(site.name, f"the format {edge.name} of the edge", reason)
            if plain_edge(site) and edge.name != first.name:
                reason = f"it stands at the edge of the model and is kept at {edge.name}; a budget would assign it too"
                decline(site.name, f"the format {first.name}", reason)
    probes |= {group: probes_of(group) for group in groups if group not in probes}
    _predict(analysis, probes, chosen, options.latency, options.group)
    if clock is not None:
        chosen.timing = timing_of(clock, siblings_of(analysis.sites), chosen.schemes, chosen.placement)
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
    shares = {name: routes_of(group) for name, group in every.items()} if method_of(options.method).walks else {}
    routes = {name: found for name, found in shares.items() if found}
    fitted = not FITTED.isdisjoint((options.transforms, *options.transform_for.values()))
    moments = fitted or not data.random  # what random inputs teach is good for nothing else
    formats = (fmt for scheme in schemes for fmt in (scheme.weight, scheme.activation) if fmt is not None)
    rows = FINE_ROWS if all(fmt.bits >= 8 for fmt in formats) else MAX_ROWS
    rows = rows if options.device == "cpu" else DEVICE_ROWS
    found = kept_statistics(
        work, analysis.model, {name: group.reading for name, group in every.items()}, data,
        wanted=[group.name for group in groups], routes=routes, max_rows=rows, moments=moments, device=options.device,
        memory=options.memory, decline=decline, progress=progress, group=options.group,
    )  # fmt: skip
    for group in (group for group in groups if group.name not in found):
        why = f"{data.about} never reaches it"
        if group.nested and group.patches is not None:
            why = "patches of what a body makes are not seen from outside"
        elif group.nested and group.name not in visible(analysis.model, [group.name]):
            why = "the body that it stands in may read another number of rows at every step"
        for site in group.sites:
            decline(site.name, "calibrating it", why)
    return found


def _choices(
    analysis: Analysis, probes: Mapping[Siblings, Probes], target: Target, options: Options, chosen: Choice,
    clock: GraphClock | None, schemes: Sequence[Scheme], *, kinds: Mapping[Siblings, str],
    statistics: Mapping[str, Statistics], fits: bool,
    progress: Progress | None,
) -> None:  # fmt: skip
    """Choose the transforms, and with them, where there are several schemes or a budget, that of every unit.

    Siblings, and sites that share a weight, have one scheme. Forced transforms do not depend on schemes, but for the
    width of blocks: they are placed for the coarsest, and schemes assigned then.
    """
    several = len(schemes) > 1 or bool(options.weight_budget)
    ordered = sorted(schemes, key=lambda scheme: (scheme.bits, scheme.name)) if several else schemes
    place = partial(
        pose_choice, analysis, probes, kind=options.transforms, kinds=kinds, statistics=statistics, fits=fits,
        price=clock or Share(target.transform_price), seed=options.seed, staying=target.online,
        channels=target.channels, progress=progress, group=options.group,
    )  # fmt: skip
    if several:
        every = siblings_of(analysis.sites)
        tables = {site: chosen.curvatures.get(site.name, EVEN) for site in chosen.tables}
        asked = asked_of(probes, ordered, target, options.weight_budget, chosen.wishes, tables, clock, every)
    else:
        asked = of_one(probes, schemes[0], chosen.wishes)
    if several and options.transforms not in (*FREE, "none"):
        chosen.placement, posed = place(of_one(probes, ordered[0], chosen.wishes))
        posed.decide(chosen.placement)
        decided = assign_alone(analysis, probes, asked, chosen.placement)
    else:
        chosen.placement, chosen.posed = place(asked)
        decided = chosen.posed.decide(chosen.placement)
    if not several:
        return
    afforded = [scheme for i, scheme in enumerate(ordered) if asked.affords(i) and not asked.bare]
    chosen.uniform = {scheme.name: _schemes(asked, chosen, scheme) for scheme in afforded}
    chosen.assignment = decided.assignment
    for number, (item, index) in enumerate(decided.schemes.items()):
        for site in [item.site] if isinstance(item, Table) else item.sites:
            scheme = chosen.wishes.scheme(site, ordered[index % len(ordered)])
            chosen.schemes[site.name] = Scheme(scheme.weight) if site.input is None else scheme
            chosen.ties[site.name] = f"t{number}"


def _schemes(asked: Asked, chosen: Choice, scheme: Scheme) -> dict[str, Scheme]:
    """One scheme at every site that has no wish of its own."""
    inputs = {site.name: chosen.wishes.scheme(site, scheme) for group in asked.schemes for site in group.sites}
    return inputs | {site.name: Scheme(chosen.wishes.scheme(site, scheme).weight) for site in chosen.tables}


def _predict(
    analysis: Analysis, probes: Mapping[Siblings, Probes], chosen: Choice, plain: bool, shared: Group
) -> None:  # fmt: skip
    def predicted(pairs: Sequence[tuple[Siblings, Probes]]) -> Iterator[list[tuple[str, float, float, float | None]]]:
        for group, own in pairs:
            transform, found = total_transform(analysis, group, chosen.placement), []
            for site, item in zip(group.sites, own.items, strict=True):
                scheme = chosen.schemes[site.name]
                plainly = site_loss(item, scheme) if plain and transform is not None else None
                error, loss = (measure(item, scheme, transform) for measure in (site_error, site_loss))
                found.append((site.name, error, loss, plainly))
            yield found

    entries = itertools.chain.from_iterable(shared.spread(list(probes.items()), predicted))
    for name, chosen.errors[name], chosen.losses[name], plainly in entries:
        chosen.plain_losses |= {} if plainly is None else {name: plainly}
    for site in chosen.tables:
        scheme = Scheme(chosen.schemes[site.name].weight)
        item = probe(site, None, chosen.curvatures.get(site.name, EVEN))
        turned = rows_transform(analysis, site, chosen.placement.offline)
        chosen.errors[site.name] = site_error(item, scheme, turned)
        chosen.losses[site.name] = site_loss(item, scheme, turned)
    if chosen.assignment is not None:
        chosen.assignment = replace(chosen.assignment, loss=math.fsum(chosen.losses.values()))
