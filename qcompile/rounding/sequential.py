"""Runs calibration data through two graphs side by side: the float one, and the one that is quantized so far.

It stops in front of every group of sites, where what both read is known, and goes on with the weights that the sites
were given and the input rounded as they will read it. A graph is run once in all, whatever the number of groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch

from qcompile.analysis.forms import Lookup, Stack, read_site
from qcompile.analysis.matrices import layout_of
from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Site
from qcompile.errors import InternalError
from qcompile.formats import fake_quantize_rows
from qcompile.group.group import ALONE, Group, LaneSum, lane_of
from qcompile.ir.graph import add_initializer, label, node_name
from qcompile.ir.required import constant, name_of
from qcompile.rounding.moments import InputMoments
from qcompile.run.executor import Executor, Hook, Section, dtype_for
from qcompile.run.stream import Stream
from qcompile.statistics.calibration import HELD_OUT_ROWS
from qcompile.statistics.collected import spread
from qcompile.statistics.second_moment import SecondMoment, product
from qcompile.targets.fake_quantization import insert_place, rounding
from qcompile.targets.plans import plan_of

if TYPE_CHECKING:
    from qcompile.formats.static import Activation
    from qcompile.run.memory_budget import Memory

__all__ = ["Walk", "in_order"]

#: The two graphs.
_EXACT, _QUANTIZED = "exact", "quantized"


class Walk:
    """Goes through the groups of a graph in its order: ``for group in walk``, with ``moments`` within.

    Sites in the bodies of other operators compute with their float weights in both graphs.

    Args:
        model: the float graph in its new basis; it stays as it is.
        groups: the sites; those of which none stands in the graph itself are passed over.
        tables: embedding tables.
        batches: calibration data. Sites compute as they are planned when the walk goes on behind them.
        held_out: more of it, which no moment has seen.
        device: where all of it computes.
        memory: the budget of activations.
        group: the processes that share the batches.
    """

    def __init__(
        self, model: ir.Model, groups: Sequence[Siblings], tables: Sequence[Site],
        batches: Sequence[Mapping[str, np.ndarray]], held_out: Sequence[Mapping[str, np.ndarray]] = (),
        device: str = "cpu", memory: Memory | None = None, group: Group = ALONE,
    ) -> None:  # fmt: skip
        self._learned, self._count, self._group = len(batches), len(batches) + len(held_out), group
        own = [*group.lanes(len(batches)), *(len(batches) + number for number in group.share(len(held_out)))]
        every = [*batches, *held_out]
        self._batches = {number: every[number] for number in own}
        groups = in_order(model, groups)
        sites = [*(site for group in groups for site in group.sites), *tables]
        model, begins = _with_places(model, groups, sites)
        self._weights = {_own_weight(site): site for site in sites}
        self._places = {_place(site): (site, group.axis) for group in groups for site in group.sites}
        self._engine = Executor(model, outputs=[], hooked=self._places, dtype=dtype_for(model, device), device=device)
        self._stream = Stream(self._engine, begins, memory)
        self._stops = dict(zip(begins, groups, strict=True))
        self._known: dict[Activation | None, InputMoments] = {}

    def __iter__(self) -> Iterator[Siblings]:
        """Groups as they come."""
        with self._stream.shelf() as self._shelf:
            for index, section in enumerate(self._stream.walk()):
                group = None if section.begins is None else self._stops.get(section.begins)
                if group is not None:
                    name = name_of(_read_by(group.sites[0]))  # in the basis that it has been brought to
                    self._at, self._known = (self._engine.variable(name), group.reading), {}
                    if index == 0:
                        raise InternalError("a walk begins with a section that no site begins")
                    yield group
                with self._group.together():
                    self._pass(index, section)

    def moments(self, activation: Activation | None) -> InputMoments:
        """Input moments from the input of the group at which the walk stands, as sites read it in that format."""
        if activation not in self._known:
            with self._group.together():
                self._known[activation] = self._moments(activation)
        return self._known[activation]

    def _moments(self, activation: Activation | None) -> InputMoments:
        variable, reading = self._at
        whole = None if activation is None or reading.patches is None else rounding(activation, reading.axis)
        moment, cross = SecondMoment(self._group), LaneSum(self._group)
        held_out = []
        for number in self._batches:
            values = [self._shelf.look((graph, number), variable) for graph in (_EXACT, _QUANTIZED)]
            if whole is not None and (rounded := whole(values[1])) is not None:
                values[1] = rounded  # before patches are made of it
            x, read = map(reading.rows, values)
            if number >= self._learned:
                rows = HELD_OUT_ROWS // (self._count - self._learned)
                x, read = spread(x, rows), spread(read, rows)
            if activation is not None and whole is None:
                read = fake_quantize_rows(read.float(), activation).to(read.dtype)
            if number < self._learned:
                lane = lane_of(number, self._learned)
                moment.add(read, lane)
                cross.add(product(x, read), lane)
            else:
                held_out.append((x.float(), read.float()))
        device, matrix, crossed = self._engine.device, moment.matrix, cross.joined()
        if self._group.size > 1:
            held_out = [(x.cpu(), read.cpu()) for x, read in held_out]
        every = [pair for own in self._group.gathered(lambda: held_out) for pair in own]
        exact, seen = ([pair[side].to(device) for pair in every] for side in (0, 1))
        lengths, nothing = [len(rows) for rows in exact], torch.zeros(0, len(matrix), device=device)
        return InputMoments(
            matrix, torch.zeros_like(matrix) if crossed is None else crossed / max(moment.rows, 1),
            torch.cat([nothing, *exact]), torch.cat([nothing, *seen]), lengths, moment.effective,
        )  # fmt: skip

    def _pass(self, index: int, section: Section) -> None:
        """Run one section of both graphs, on all batches."""
        weights = {}
        for name in self._engine.constants_of(section):
            plan = plan_of(self._weights[name].node) if name in self._weights else None
            if plan is not None:
                site = self._weights[name]
                weights[name] = layout_of(site).weight(plan.weight.to(self._engine.device).dequantize())
        hooks = self._hooks(section)
        for number, batch in self._batches.items():
            for graph in (_EXACT, _QUANTIZED):
                before = self._engine.arguments(batch) if index == 0 else self._shelf.take((graph, number))
                given = (hooks, weights) if graph is _QUANTIZED else (None, None)
                with torch.no_grad():
                    self._shelf.put((graph, number), self._stream.after(index, before, *given))

    def _hooks(self, section: Section) -> dict[str, Hook]:
        """What rounds the inputs of the sites that are planned."""
        found: dict[str, Hook] = {}
        by_format: dict[tuple[str, Activation], Hook] = {}
        for name in section.hooked:
            site, axis = self._places[name]
            plan = plan_of(site.node)
            if plan is not None and plan.activation is not None:
                key = name_of(_read_by(site)), plan.activation
                found[name] = by_format.setdefault(key, _once(rounding(plan.activation, axis)))
        return found


def in_order(model: ir.Model, groups: Sequence[Siblings]) -> list[Siblings]:
    """The groups that a walk passes, as they come: those of the graph itself, by the first of their sites."""
    places = {node: place for place, node in enumerate(model.graph)}
    passed = [group for group in groups if group.sites[0].node in places]
    return sorted(passed, key=lambda group: min(places[site.node] for site in group.sites))


def _once(round_: Hook) -> Hook:
    """A hook for siblings, which rounds their value once."""
    known: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def hook(value: torch.Tensor) -> torch.Tensor | None:
        if not known or known[0][0] is not value:
            known[:] = [(value, round_(value))]
        return known[0][1]

    return hook


def _place(site: Site) -> str:
    return f"{name_of(_read_by(site))} for {site.name}"


def _own_weight(site: Site) -> str:
    return f"{site.weight.name} of {site.name}"


def _read_by(site: Site) -> ir.Value:
    """The activation that a product reads."""
    form = read_site(site.node)
    if isinstance(form, Lookup):
        raise InternalError(f"{label(form.node)} looks rows up, and reads no activation")
    return form.x


def _with_places(
    model: ir.Model, groups: Sequence[Siblings], sites: Sequence[Site]
) -> tuple[ir.Model, list[str]]:  # fmt: skip
    """A copy in which each site reads a value and a weight of its own, and the operators at which groups begin."""
    model = model.clone()
    nodes, begins = {node_name(node): node for node in model.graph}, []
    order = {name: place for place, name in enumerate(nodes)}
    for group in groups:
        inner = sorted(group.sites, key=lambda site: order[site.name])
        for site in inner:
            insert_place([nodes[site.name]], _operand(nodes[site.name], name_of(_read_by(site))), _place(site))
        begins.append(_place(inner[0]))
    for site in sites:
        form = read_site(site.node)
        reader = nodes[node_name(form.reader)] if isinstance(form, Stack) else nodes[site.name]
        weight = _operand(reader, name_of(site.weight))
        own = add_initializer(model, _own_weight(site), constant(weight))
        for index, value in enumerate(reader.inputs):
            if value is weight:
                reader.replace_input_with(index, own)
    return model, begins


def _operand(node: ir.Node, name: str) -> ir.Value:
    return next(value for value in node.inputs if value is not None and value.name == name)
