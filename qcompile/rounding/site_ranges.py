"""Static ranges of what sites read, and of what convolutions write, in the basis that the graph has been brought to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import onnx_ir as ir

from qcompile.analysis.forms import Lookup, read_site
from qcompile.analysis.joins import all_values, joined_values
from qcompile.analysis.matrices import weight_matrix
from qcompile.analysis.patches import is_convolution
from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Site
from qcompile.formats.format import Format
from qcompile.ir.required import name_of, producer_of
from qcompile.notes import Decline, Progress
from qcompile.run.data import Data
from qcompile.run.memory_budget import Memory
from qcompile.statistics.ranges import Calibrated, Wanted, learn_ranges
from qcompile.targets.eligible import WEIGHT
from qcompile.targets.scheme import Scheme

__all__ = ["Ranges", "learn_site_ranges"]

#: Rows of each weight by which calibrators are compared.
WEIGHT_ROWS = 64


@dataclass(frozen=True)
class Ranges:
    """The ranges of a graph.

    Args:
        sites: those of inputs, by name of the site.
        results: those of what operators write, for all that reads it.
    """

    sites: Mapping[str, Calibrated] = field(default_factory=dict)
    results: Mapping[ir.Node, Calibrated] = field(default_factory=dict)


@dataclass(frozen=True)
class _Read:
    """A site that reads a value in a static format, and how."""

    site: Site
    value: ir.Value
    group: Siblings
    format: Format


def learn_site_ranges(
    model: ir.Model, groups: Sequence[Siblings], schemes: Mapping[str, Scheme], data: Data | None, decline: Decline,
    *, everywhere: bool = False, device: str = "cpu", memory: Memory | None = None, progress: Progress | None = None,
) -> Ranges:  # fmt: skip
    """Learn a range for each value that sites read in a static format, and for those that convolutions hand on.

    Siblings share a range. A site that reads what was handed on reads it in the range that it has.

    Args:
        model: the float graph.
        groups: the sites.
        schemes: by site name.
        data: to learn from; without it there are no ranges.
        decline: told of sites that get none, which keep their weights.
        everywhere: whether all values get one, in the format of the first site, for runtimes without floats.
    """
    reads = _reads(groups, schemes, decline)
    if not reads or data is None:
        return Ranges()
    writers = {read.site.node: read.format for read in reads if is_convolution(read.site.node)}
    if everywhere:
        joined = all_values(model)
        formats = dict.fromkeys(joined.values(), reads[0].format)
    else:
        joined = joined_values(model, writers, {read.site.node for read in reads})
        formats = _formats(joined, writers)
    inputs: dict[tuple[ir.Value, Format], list[_Read]] = defaultdict(list)
    for read in reads:
        like = joined.get(read.value)
        root = read.value if like is None or formats[like] is not read.format else like
        inputs[root, read.format].append(read)
    found: dict[tuple[ir.Value, Format], Calibrated] = {}
    for fmt in dict.fromkeys([*(fmt for _, fmt in inputs), *formats.values()]):
        roots = [value for value, own in formats.items() if own is fmt]
        values = dict.fromkeys([*(value for value, of in inputs if of is fmt), *roots])
        wanted = {name_of(value): _wanted(value, fmt, inputs.get((value, fmt), [])) for value in values}
        learned = learn_ranges(model, wanted, data, device=device, memory=memory, decline=decline, progress=progress)
        found |= {(value, fmt): learned[name_of(value)] for value in values if name_of(value) in learned}
    sites = {read.site.name: found[key] for key, own in inputs.items() if key in found for read in own}
    for read in reads:
        if read.site.name not in sites:
            decline(read.site.name, WEIGHT, f"{data.about} never reaches it, so that it has no static scale")
    pairs = {value: (like, formats[like]) for value, like in joined.items()}
    return Ranges(sites, {producer_of(value): found[key] for value, key in pairs.items() if key in found})


def _reads(groups: Sequence[Siblings], schemes: Mapping[str, Scheme], decline: Decline) -> list[_Read]:
    found = []
    for group in groups:
        for site in group.sites:
            fmt = schemes[site.name].activation
            if fmt is None or not fmt.static:
                continue
            form = read_site(site.node)
            if isinstance(form, Lookup) or form.x.graph is not site.weight.graph:  # a group's value may have gone since
                reason = "it stands in the body of another operator, whose values are not calibrated for static scales"
                decline(site.name, WEIGHT, reason)
            elif fmt.group is not None and is_convolution(site.node):
                decline(site.name, WEIGHT, f"groups of {fmt.name} lie along one axis, and a convolution reads several")
            else:
                found.append(_Read(site, form.x, group, fmt))
    return found


def _formats(joined: Mapping[ir.Value, ir.Value], writers: Mapping[ir.Node, Format]) -> dict[ir.Value, Format]:
    """The formats of values that have a range of their own: that of the convolution, or of the first that is joined."""
    formats: dict[ir.Value, Format] = {}
    for value, like in joined.items():
        if value is like:
            node = producer_of(value)
            while node not in writers and (before := node.inputs[0]) is not None and before not in joined:
                node = producer_of(before)  # an activation
            first = node.inputs[0]
            formats[value] = writers[node] if node in writers or first is None else formats[joined[first]]
    return formats


def _wanted(value: ir.Value, fmt: Format, reads: Sequence[_Read]) -> Wanted:
    """The value as sites read it; groups of its features that are read apart say nothing together."""
    direct = [read for read in reads if read.value is value and not read.group.grouped]
    return Wanted(fmt, [(read.group.reading, partial(weight_matrix, read.site, WEIGHT_ROWS)) for read in direct])
