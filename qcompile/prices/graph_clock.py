"""The time of a graph at given inputs, by a profile: of its sites in any scheme, of transforms, of all else."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompile.analysis.matrices import layout_of
from qcompile.analysis.patches import is_convolution, windowed
from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Site
from qcompile.ir.graph import node_name
from qcompile.prices.linear_model import CACHED, CORE, added, beyond
from qcompile.prices.operator_work import operator_kind, operator_work
from qcompile.prices.profile import Profile, input_work, kind_of, product_work, stored_bytes
from qcompile.run.trace import Step, trace
from qcompile.targets.scheme import FLOAT, Scheme

if TYPE_CHECKING:
    from qcompile.transforms import Transform

__all__ = ["GraphClock"]


@dataclass(frozen=True)
class GraphClock:
    """Seconds of the parts of a graph.

    Args:
        profile: what work costs.
        rows: of the output of each site, by its name: of all runs of the body in which it stands.
        read: elements of the value that it reads, likewise.
        rest: seconds of everything that is no site.
        sizes: features in a row, and numbers, of all weights of sites.
        shapes: of the inputs at which this holds.
    """

    profile: Profile
    rows: Mapping[str, float]
    read: Mapping[str, float]
    rest: float
    sizes: Sequence[tuple[int, int]]
    shapes: Mapping[str, tuple[int, ...]]

    @staticmethod
    def of(profile: Profile, model: ir.Model, sites: Sequence[Site], inputs: Mapping[str, np.ndarray]) -> GraphClock:
        """The clock of a float graph, which is run once to see the shapes.

        Args:
            sites: all that there are; those that read nothing, embedding tables, count among the rest.

        Raises:
            InputError: if onnxruntime cannot run the graph.
        """
        ours = {node_name(site.node): site for site in sites if site.input is not None}
        seen: dict[str, list[Step]] = defaultdict(list)
        rest = 0.0
        for step in trace(model, inputs):
            if step.name in ours:
                seen[step.name].append(step)
            else:
                rest += profile.operator(operator_kind(step), operator_work(step))
        rows, read = dict[str, float](), dict[str, float]()
        for name, site in ours.items():
            rows[site.name] = sum(math.prod(step.outputs[0]) for step in seen[name]) / site.shape[site.axis_out]
            read[site.name] = float(sum(math.prod(step.inputs[0]) for step in seen[name] if step.inputs))
        sizes = [(layout_of(site).columns, math.prod(site.shape)) for site in ours.values()]
        shapes = {name: array.shape for name, array in inputs.items()}
        return GraphClock(profile, rows, read, rest, sizes, shapes)

    @cached_property
    def _stored(self) -> dict[str, float]:
        return {}

    def stored(self, scheme: Scheme) -> float:
        """Bytes of all weights of the graph, if all are stored in a scheme."""
        if scheme.name not in self._stored:
            found = (stored_bytes(scheme, width, count) for width, count in self.sizes)
            self._stored[scheme.name] = math.fsum(found)
        return self._stored[scheme.name]

    def products(self, pairs: Iterable[tuple[Site, Scheme]]) -> float:
        """Seconds of sites that read one value."""
        works: dict[str, list[Mapping[str, float]]] = {}
        for site, scheme in pairs:
            rows, width, stored = self.rows.get(site.name, 0.0), layout_of(site).columns, self.stored(scheme)
            own = product_work(
                scheme, rows, width, site.shape[site.axis_out], math.prod(site.shape),
                cold=beyond(stored, CORE), far=beyond(stored, CACHED),
            )  # fmt: skip
            kind = kind_of(scheme, convolution=is_convolution(site.node))
            works.setdefault(kind, [input_work(rows, width)]).append(own)
        return math.fsum(self.profile.product(kind, added(found)) for kind, found in works.items())

    def transform(self, group: Siblings, transform: Transform) -> float:
        """Seconds of an online transform in front of the sites of a group."""
        site = group.sites[0]
        rows = self.rows.get(site.name, 0.0)
        rows = self.read.get(site.name, 0.0) / transform.size if windowed(site.node) else rows
        return self.profile.transform(transform, rows)

    def float_sites(self, groups: Iterable[Siblings]) -> float:
        """Seconds of sites as they came."""
        return math.fsum(self.products((site, FLOAT) for site in group.sites) for group in groups)
