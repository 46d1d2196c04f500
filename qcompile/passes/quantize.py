"""Quantize: round every weight to its format, in the basis that it has been brought to, and plan its site."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from qcompile.analysis.matrices import weight_matrix
from qcompile.analysis.siblings import Siblings, routed
from qcompile.analysis.spaces import Site
from qcompile.formats import Format, Quantized
from qcompile.formats.scalar import quantize_scalar
from qcompile.formats.static import Activation, Range
from qcompile.formats.structured.vector import VectorFormat
from qcompile.formats.tensor_scale import default_tensor_scale
from qcompile.group.group import ALONE, Group
from qcompile.passes.state import State
from qcompile.rounding.better import better, better_experts
from qcompile.rounding.kept_rounding import Asked, Following, Lesson, Notes, kept_roundings, learned_from
from qcompile.rounding.methods import Method, method_of
from qcompile.rounding.moments import InputMoments, input_moments, joined
from qcompile.rounding.neighbours import adds_in_pairs, within
from qcompile.rounding.sequential import Walk, in_order
from qcompile.rounding.site_ranges import learn_site_ranges
from qcompile.run.memory_budget import Memory
from qcompile.shapes.arithmetic import Scalar
from qcompile.statistics.collected import Routed, Statistics
from qcompile.targets.plans import SCHEME, Plan, drop_plans, give_plan, give_range
from qcompile.targets.scheme import Scheme
from qcompile.transforms.widened import Widened
from qcompile.work import Work

if TYPE_CHECKING:
    import torch

    from qcompile.notes import Progress
    from qcompile.run.data import Data
    from qcompile.transforms import Transform

__all__ = ["Quantize"]


@dataclass(frozen=True)
class Quantize:
    """Round the weights of sites, and plan them.

    Args:
        groups: sites of the graph by the value that they read, with the total transform of that value.
        tables: embedding tables, which read nothing.
        schemes: by site name.
        statistics: of the untransformed inputs, by value name.
        data: what they are of; with it, methods that walk round each site for what those before it make of that data,
            and ranges of static formats are learned. Without it, sites whose scheme has one stay float.
        method: as ``method_of`` reads it. One that learns needs statistics, and rounds plainly where there are none, or
            where that is better on rows that were held out. Each matrix of a stack learns from the rows of its expert.
        device: where torch computes.
        memory: the budget of activations.
        work: about this graph, its transforms and this data.
        group: the processes that share batches and sites.
        shares: whether siblings of one format share its tensor scale, for runtimes that compute them as one product.
        everywhere: whether all values get static ranges, not those alone that sites read and convolutions hand on.
        neighbours: as targets have it.
    """

    groups: Sequence[tuple[Siblings, Transform | None]]
    tables: Sequence[Site]
    schemes: Mapping[str, Scheme]
    statistics: Mapping[str, Statistics]
    method: str = "gptq"
    device: str = "cpu"
    data: Data | None = None
    memory: Memory = field(default_factory=Memory)
    progress: Progress | None = None
    work: Work = Work()
    group: Group = ALONE
    shares: bool = False
    everywhere: bool = False
    neighbours: int | None = None
    name: ClassVar[str] = "quantize"

    def __post_init__(self) -> None:
        """Refuse an unknown method.

        Raises:
            InputError: if it is.
        """
        method_of(self.method)

    @cached_property
    def _way(self) -> Method:
        return method_of(self.method)

    def apply(self, state: State) -> bool:
        """Plan every site whose scheme has a format for its weight; no other operator keeps a plan.

        Sites keep their float weights until they are lowered; what the graph says of them is the name of their scheme.
        So another run on the same state, which rounds again, makes the same plans and changes nothing. ``held_out`` in
        ``state.notes`` is how GPTQ compares with rounding to nearest, by site.

        Returns:
            whether the names of schemes in the graph changed.
        """
        before = _scheme_names(state)
        drop_plans(state.model)  # the walk takes a site without a plan for one that computes with its float weight
        ranges = self._give_ranges(state)
        once: dict[Hashable, Quantized] = {}  # a weight that sites share is rounded once, and stored once
        for site in self.tables:
            scheme = self.schemes[site.name]
            if scheme.weight is not None:
                if (key := _weight_of(site, scheme.weight)) not in once:
                    once[key] = self._of_table(site, scheme.weight)
                give_plan(site.node, Plan(replace(scheme, weight=once[key].format), once[key]))
        for done, (group, lesson) in enumerate(self._lessons(state)):
            self._plan(state, group, lesson, ranges, once)
            if self.progress is not None:
                self.progress("quantizing", done + 1, len(self.groups))
        return _scheme_names(state) != before  # no analysis reads them, and nothing went unread: not ``edited``

    def _give_ranges(self, state: State) -> dict[str, Range]:
        """Give results their ranges, and return those of inputs by site; ``ranges`` in the notes has how."""
        found = learn_site_ranges(
            state.model, [group for group, _ in self.groups], self.schemes, self.data, state.decline,
            everywhere=self.everywhere, device=self.device, memory=self.memory, progress=self.progress,
        )  # fmt: skip
        if found.sites:
            state.notes["ranges"] = found.sites
        for node, own in found.results.items():
            give_range(node, own.range)
        return {name: own.range for name, own in found.sites.items()}

    def _plan(
        self, state: State, group: Siblings, lesson: Lesson, ranges: Mapping[str, Range],
        once: dict[Hashable, Quantized],
    ) -> None:  # fmt: skip
        """Round the weights of a group that were not rounded yet, and plan its sites."""
        wanted: dict[Hashable, Asked] = {}
        schemes = [(site, self.schemes[site.name], ranges.get(site.name)) for site in group.sites]
        sites = [(site, own.weight, own, within) for site, own, within in schemes if within or not own.static]
        for site, fmt, scheme, own in sites:
            if fmt is not None and (key := _weight_of(site, fmt)) not in {*once, *wanted}:
                reads = own or scheme.activation
                make = partial(self._rounded, group, site, fmt, reads, lesson)
                asked = [*self._asked([site])[0], *([own.name] if own else [])]
                wanted[key] = Asked(asked, fmt, reads, float(np.prod(site.shape)), make)
        group_of = self.group if self._way.learns else ALONE  # what is quick, each process does itself
        made = dict(zip(wanted, kept_roundings(lesson, list(wanted.values()), group_of), strict=True))
        for site, fmt, scheme, own in sites:
            if fmt is not None:
                if (key := _weight_of(site, fmt)) in once:
                    self._say(state, site)
                else:
                    made[key].say(site.name, state)
                    once[key] = made[key].weight
                give_plan(site.node, Plan(replace(scheme, weight=once[key].format), once[key], own))

    def _lessons(self, state: State) -> Iterator[tuple[Siblings, Lesson]]:
        """Every group with what its sites learn from.

        Those that a walk passes come first, in the order of the graph: the sites of one are planned when the next
        comes, whose lesson depends on all of them.
        """
        known = [g for g, _ in self.groups if g.name in self.statistics] if self._way.learns else []
        work = self.work.about(
            lambda: [self.method, self.shares, self.neighbours, learned_from(self.statistics), self._asked(self.tables)]
        )
        transforms = dict(self.groups)
        walked: list[Siblings] = []
        if self._way.walks and self.data is not None and known:
            walked, behind = in_order(state.model, known), work.about(lambda: "in order")
            with closing(Following(partial(self._walk, state, known, self.data), state.decline)) as following:
                for group in walked:
                    yield group, Lesson(partial(self._followed, following, group, transforms[group]), behind, following)
                    behind = behind.about(partial(self._asked, group.sites))
        for group, transform in self.groups:
            if group in known and group not in walked:
                yield group, Lesson(partial(self._static, group, transform), work)
            elif group not in known:
                yield group, Lesson(lambda _: None, work if self._way.learns and not self._way.walks else Work())

    def _walk(self, state: State, known: Sequence[Siblings], data: Data) -> Walk:
        """A walk on the data that the statistics are of."""
        count = max(found.batches for found in self.statistics.values())
        learned = data.thinned(max(found.sequences for found in self.statistics.values())).batches[:count]
        return Walk(state.model, known, self.tables, learned, data.held_out, self.device, self.memory, self.group)

    def _asked(self, sites: Sequence[Site]) -> list[list[str | None]]:
        """What is asked of sites."""
        formats = [(self.schemes[site.name].weight, self.schemes[site.name].activation) for site in sites]
        names = [[None if fmt is None else fmt.name for fmt in pair] for pair in formats]
        return [[site.name, site.weight.name, site.stored.name, *own] for site, own in zip(sites, names, strict=True)]

    def _followed(
        self, following: Following, group: Siblings, transform: Transform | None, fmt: Activation | None
    ) -> InputMoments | None:
        return following.moments(group, fmt) or self._static(group, transform)

    def _say(self, state: State, site: Site) -> None:
        """Say what a weight loses that was rounded for another site."""
        if self._way.learns and site.stored is not site.weight:
            reason = "its weight is a table that is looked up, which is stored once and rounded to nearest"
            state.decline(site.name, self._way.title, reason)

    def _of_readers(self, group: Siblings, site: Site, moments: InputMoments | None) -> InputMoments | None:
        """What rounds the weight of a site learns from: what every other site reads that shares it, too."""
        if moments is None:
            return None
        static = [
            self._static(other, transform)
            for other, transform in self.groups
            if other is not group and any(reader.weight is site.weight for reader in other.sites)
            if other.name in self.statistics
        ]
        return joined([moments, *(found for found in static if found is not None)])

    def _static(self, group: Siblings, transform: Transform | None, _: Activation | None = None) -> InputMoments | None:
        """From the float graph alone; nothing where groups of features in another basis share one moment."""
        if transform is not None and group.grouped:
            return None
        return input_moments(self.statistics[group.name], Widened(group.taps)(transform), self.device)

    def _of_table(self, table: Site, fmt: Scalar) -> Quantized:
        weight = weight_matrix(table, device=self.device)
        made = quantize_scalar(weight, fmt).to("cpu")  # to nearest; what a product reads as well is fit for that
        readers = (site for group, _ in self.groups for site in group.sites if site.stored is table.weight)
        return next((self._fitting(site, weight, made) for site in readers), made)

    def _rounded(
        self, group: Siblings, site: Site, fmt: Scalar, activation: Activation | None, lesson: Lesson, notes: Notes
    ) -> Quantized:
        moments = self._of_readers(group, site, lesson.teach(activation))
        weight = weight_matrix(site, device=self.device)
        if self._way.learns:
            weight = weight.contiguous()  # they walk over it often
        return self._round(group, site, weight, fmt, moments, notes).to("cpu")

    def _fitting(self, site: Site, weight: torch.Tensor, made: Quantized, by: InputMoments | None = None) -> Quantized:
        """A rounded weight with which the products of a site are exact on every processor."""
        if self.neighbours is None or not adds_in_pairs(site, self.schemes[site.name]):
            return made
        again = partial(self._way.with_scales, made.format, by)
        return within(self.neighbours, weight, made, None if by is None else by.importance, again)

    def _round(
        self, group: Siblings, site: Site, weight: torch.Tensor, fmt: Scalar, moments: InputMoments | None, notes: Notes
    ) -> Quantized:
        unusable = None if moments is None else moments.unusable
        usable, way = moments if unusable is None else None, self._way
        shared = self._shared(group, site, fmt) if self.shares and isinstance(fmt, Format) else None
        plain = way.plain(weight, fmt, shared) if isinstance(fmt, Format) else quantize_scalar(weight, fmt)
        plain = self._fitting(site, weight, plain)
        if isinstance(fmt, VectorFormat):
            if way.learns and (usable is not None or not way.walks):
                notes.decline(site.name, way.title, f"it chooses no scales for the codebook of {fmt.name}")
            return plain
        if not way.learns or moments is None:
            return plain
        form = routed(site)
        route = None if form is None else form.route
        rows = None if route is None else self.statistics[group.name].routed.get(route)
        if way.walks and form is not None and rows is not None:
            own = partial(self._of_expert, group, rows)
            return self._fitting(site, weight, better_experts(notes, site, weight, plain, form.places, own, way))
        if usable is not None:
            fitting = partial(self._fitting, site, weight, by=usable)
            return better(notes, site, weight, plain, usable, way, shared, fitting)
        notes.decline(site.name, way.title, f"{unusable}, so it is {way.otherwise}")
        return plain

    def _shared(self, group: Siblings, site: Site, fmt: Format) -> torch.Tensor | None:
        """The power of two from the largest tensor scale of siblings on: no weight is clipped, all fit bfloat16."""
        import torch

        alike = [other for other in group.sites if self.schemes[other.name].weight is fmt] or [site]
        scales = [default_tensor_scale(weight_matrix(other, device=self.device), fmt) for other in alike]
        found = [scale for scale in scales if scale is not None]
        return torch.exp2(max(found, key=float).log2().ceil()) if found else None

    def _of_expert(self, group: Siblings, rows: Routed, expert: int) -> InputMoments | None:
        """From the rows that one matrix of a stack saw."""
        statistics = rows.of(expert)
        transform = next(transform for other, transform in self.groups if other is group)
        return None if statistics is None else input_moments(statistics, transform, self.device)


def _weight_of(site: Site, fmt: Scalar) -> Hashable:
    """What tells one rounding from another: the weight, the axis along which its groups lie, the format."""
    if site.stored is not site.weight:
        return site.stored, 1, fmt.name  # the features of a table
    return site.weight, site.axis_out if site.input is None else site.axis_in, fmt.name


def _scheme_names(state: State) -> list[str | None]:
    """Names of schemes that the graph has, operator by operator."""
    return [node.metadata_props.get(SCHEME) for node in state.model.graph.all_nodes()]
