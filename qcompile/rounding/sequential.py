"""Runs calibration data through two graphs side by side: the float one, and the one that is quantized so far.

It stops in front of every group of sites, where what both read is known, and goes on with the weights that the sites
were given and the input rounded as they will read it. A graph is run once in all, whatever the number of groups.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch

from qcompile.analysis.forms import Linear, Lookup, Stack, as_weight, read_site
from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Site
from qcompile.errors import InternalError
from qcompile.formats import fake_quantize_rows
from qcompile.ir.graph import label
from qcompile.ir.required import name_of
from qcompile.ir.tensors import read, release
from qcompile.rounding.moments import InputMoments
from qcompile.run.segments import Part, parts, runner
from qcompile.statistics.calibration import HELD_OUT_ROWS, rows_of_value, spread
from qcompile.statistics.second_moment import SecondMoment
from qcompile.targets.plans import plan_of

if TYPE_CHECKING:
    import onnx

    from qcompile.formats import Format

__all__ = ["Walk"]

Batch = dict[str, np.ndarray]


class Walk:
    """Goes through the groups of a graph in its order: ``for group in walk``, with ``moments`` within.

    Sites in the bodies of other operators compute with their float weights in both graphs, and so do stacks of
    experts that are looked up before their input is known.

    Args:
        model: the float graph in its new basis.
        groups: the sites; those of which none stands in the graph itself are passed over.
        tables: embedding tables.
        batches: calibration data. Sites compute as they are planned when the walk goes on behind them.
        held_out: more of it, which no moment has seen.
        device: where torch computes.
    """

    def __init__(
        self, model: ir.Model, groups: Sequence[Siblings], tables: Sequence[Site],
        batches: Sequence[Mapping[str, np.ndarray]], held_out: Sequence[Mapping[str, np.ndarray]] = (),
        device: str = "cpu",
    ) -> None:  # fmt: skip
        self._model, self._device, self._learned = model, device, len(batches)
        self._exact: list[Batch] = [dict(batch) for batch in (*batches, *held_out)]
        self._quantized: list[Batch] = [dict(batch) for batch in (*batches, *held_out)]
        sites = [*(site for group in groups for site in group.sites), *tables]
        self._sites: dict[ir.Node, list[_Operands]] = defaultdict(list)
        for operands in (_Operands(site) for site in sites if site.node.graph is model.graph):
            for node in {operands.reader, operands.site.node}:
                self._sites[node].append(operands)
        group_of = {site.node: group for group in groups for site in group.sites}
        first: dict[Siblings, ir.Node] = {}
        for node in model.graph:
            if node in group_of:
                first.setdefault(group_of[node], node)
        self._stops = {node: group for group, node in first.items()}
        self._parts = list(parts(model.graph, self._stops.__contains__))
        self._known: dict[Format | None, InputMoments] = {}
        self._readers = Counter(name_of(value) for part in self._parts for value in part.reads)

    def __iter__(self) -> Iterator[Siblings]:
        """Groups as they come.

        Raises:
            InputError: if onnxruntime cannot run the graph in parts.
        """
        for before, part in zip([None, *self._parts], self._parts, strict=False):
            if before is not None:
                self._run(before)
            group = self._stops.get(part.nodes[0])
            if group is not None:
                self._at, self._known = (name_of(_read_by(read_site(part.nodes[0]))), group.axis), {}
                yield group

    def moments(self, activation: Format | None) -> InputMoments:
        """Input moments from the input of the group at which the walk stands, as sites read it in that format."""
        if activation not in self._known:
            self._known[activation] = self._moments(activation)
        return self._known[activation]

    def _moments(self, activation: Format | None) -> InputMoments:
        name, axis = self._at
        moment, cross = SecondMoment(), torch.zeros((), dtype=torch.float64, device=self._device)
        exact, seen = [], []
        for number, (batch, quantized) in enumerate(zip(self._exact, self._quantized, strict=True)):
            x, read_ = (rows_of_value(values[name], axis).to(self._device) for values in (batch, quantized))
            if number >= self._learned:
                rows = HELD_OUT_ROWS // (len(self._exact) - self._learned)
                x, read_ = spread(x, rows), spread(read_, rows)
            read_ = read_ if activation is None else fake_quantize_rows(read_, activation)
            if number < self._learned:
                moment.add(read_)
                product = x.T @ read_
                cross = product.double() if not cross.ndim else cross.add_(product)
            else:
                exact.append(x)
                seen.append(read_)
        lengths, nothing = [len(rows) for rows in exact], torch.zeros(0, len(moment.matrix), device=self._device)
        return InputMoments(
            moment.matrix, cross / max(moment.rows, 1), torch.cat([nothing, *exact]), torch.cat([nothing, *seen]),
            lengths, moment.effective,
        )  # fmt: skip

    def _run(self, part: Part) -> None:
        """One part of both graphs, on all batches."""
        constants = part.constants
        arrays = {name: read(tensor) for name, tensor in constants.items()}
        nodes = [_renamed(node, self._sites.get(node, ())) for node in part.nodes]
        own = [(node, operands) for node in part.nodes for operands in self._sites.get(node, ())]
        readers = [operands for node, operands in own if node is operands.reader]
        multiply = [operands for node, operands in own if node is operands.site.node and operands.x is not None]
        weights = {operands.weight_name: arrays[name_of(operands.site.weight)] for operands in readers}
        rounded = weights | {
            operands.weight_name: as_weight(operands.site, plan.weight.dequantize().numpy())
            for operands in readers
            if (plan := plan_of(operands.site.node)) is not None
        }
        names = (value.name for node in part.nodes for value in node.outputs)  # of those left out there is none
        made = [name for name in names if name is not None and self._readers[name]]
        run = None
        for values, given in ((self._exact, weights), (self._quantized, rounded)):
            for batch in values:
                feeds = arrays | given | {name: batch[name] for v in part.reads if (name := name_of(v)) in batch}
                for operands in multiply:
                    feeds[operands.x_name] = self._read(operands, batch, quantized=given is rounded)
                run = run or runner(self._model, nodes, feeds, made, arrays, self._varying(part, multiply))
                batch |= run(feeds)
        for name in map(name_of, part.reads):
            self._readers[name] -= 1
            if not self._readers[name]:
                for batch in (*self._exact, *self._quantized):
                    batch.pop(name, None)
        for tensor in constants.values():
            release(tensor)

    def _varying(self, part: Part, multiply: Sequence[_Operands]) -> set[str]:
        """Names of what a part reads whose shape is not the same in all batches."""
        batches = (*self._exact, *self._quantized)
        found = {
            name
            for name in map(name_of, part.reads)
            if name in batches[0] and len({np.shape(batch[name]) for batch in batches}) > 1
        }
        return found | {operands.x_name for operands in multiply if operands.activation.name in found}

    def _read(self, operands: _Operands, batch: Batch, *, quantized: bool) -> np.ndarray:
        """The input of a site."""
        x, plan = batch[name_of(operands.activation)], plan_of(operands.site.node)
        if not quantized or plan is None or (activation := plan.scheme.activation) is None:
            return x
        moved = np.moveaxis(x, operands.axis, -1)
        rows = fake_quantize_rows(rows_of_value(x, operands.axis), activation).numpy()
        return np.ascontiguousarray(np.moveaxis(rows.reshape(moved.shape), -1, operands.axis), x.dtype)


class _Operands:
    """The values that a site reads, under names of its own."""

    def __init__(self, site: Site) -> None:
        self.site, form = site, read_site(site.node)
        self.reader = form.reader if isinstance(form, Stack) else site.node
        self.x = None if site.input is None else _read_by(form)
        self.axis = 1 if site.node.op_type == "Conv" else -1
        self.weight_name = f"{site.weight.name} of {site.name}"

    @property
    def activation(self) -> ir.Value:
        """The input of a site that multiplies."""
        if self.x is None:
            raise InternalError(f"'{self.site.name}' looks rows up, and reads no activation")
        return self.x

    @property
    def x_name(self) -> str:
        """The name of that input."""
        return f"{self.activation.name} for {self.site.name}"


def _read_by(form: Linear | Lookup | Stack) -> ir.Value:
    """The activation that a product reads."""
    if isinstance(form, Lookup):
        raise InternalError(f"{label(form.node)} looks rows up, and reads no activation")
    return form.x


def _renamed(node: ir.Node, sites: Sequence[_Operands]) -> onnx.NodeProto:
    """An operator whose sites read what is theirs."""
    proto = ir.to_proto(node)
    for operands in sites:
        for index, value in enumerate(node.inputs):
            if value is operands.site.weight and node is operands.reader:
                proto.input[index] = operands.weight_name
            elif value is operands.x and value is not None and node is operands.site.node:
                proto.input[index] = operands.x_name
    return proto
