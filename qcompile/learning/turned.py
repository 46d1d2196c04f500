"""A graph whose spaces change basis by learned matrices, with fake quantization, as a function of the parameters.

Constants are folded at every step as they are for good when a placement is applied, so that the graph computes in the
new basis and nothing is multiplied but what stays online.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from qcompile.analysis.axes import Axes, AxisNode, Mode, Ref, Structure
from qcompile.analysis.boundaries import boundaries
from qcompile.analysis.folding import axis_transform
from qcompile.analysis.matrices import layout_along
from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Analysis, Site
from qcompile.ir.graph import is_float, node_name, unique
from qcompile.ir.required import constant, name_of
from qcompile.ir.tensors import read
from qcompile.learning.parametrizations import Matrices, Parametrization
from qcompile.learning.straight_through import round_rows, round_weight
from qcompile.run.executor import Executor, Hook
from qcompile.targets.fake_quantization import insert_place
from qcompile.targets.scheme import Scheme

if TYPE_CHECKING:
    from qcompile.formats import Format
    from qcompile.learning.loop import Batch, Rated
    from qcompile.transforms import Transform

__all__ = ["Bases", "Turned"]


@dataclass(frozen=True)
class Bases:
    """Transforms that are fixed, and parametrizations of what is learned behind them.

    Args:
        offline: by leaf of the axis forest.
        behind, online: by name of the value in front of sites.
        between: by name of a boundary.
        learned: by leaf; leaves that must change alike have one.
        scales: by name of the value, of what a norm takes over.
        blocks: by name of the value, of what stays online.
    """

    offline: Mapping[AxisNode, Transform]
    behind: Mapping[str, Transform]
    online: Mapping[str, Transform]
    between: Mapping[str, Transform]
    learned: Mapping[AxisNode, Parametrization] = field(default_factory=dict)
    scales: Mapping[str, Parametrization] = field(default_factory=dict)
    blocks: Mapping[str, Parametrization] = field(default_factory=dict)

    @property
    def parametrizations(self) -> list[Parametrization]:
        """All of them, each once."""
        return list(dict.fromkeys([*self.learned.values(), *self.scales.values(), *self.blocks.values()]))


@dataclass(frozen=True)
class _Weight:
    """A constant as it stands with fixed transforms folded, and what is to be done to it.

    Args:
        base: float32, in the constant's own layout.
        refs: its axes.
        axis: of the features that it is rounded along; ``None`` for a constant that is no weight of a site.
        scheme: of the site.
        group: name of the value that its sites read; ``None`` for a table.
    """

    base: Tensor
    refs: Sequence[Ref]
    axis: int | None = None
    scheme: Scheme | None = None
    group: str | None = None


class Turned:
    """The graph as a function of batches, with the parameters of ``bases``.

    Args:
        analysis: of the float graph, which stays as it is.
        groups: the sites by the value that they read; those in bodies stay float, and kernels that read several places.
        tables: embedding tables.
        schemes: by site name; a site without one stays float.
        bases: what is fixed and what is learned.
        rated: the parameters with their rates.
    """

    def __init__(
        self, analysis: Analysis, groups: Sequence[Siblings], tables: Sequence[Site], schemes: Mapping[str, Scheme],
        bases: Bases, rated: Sequence[Rated], device: str = "cpu",
    ) -> None:  # fmt: skip
        self._axes, self._bases, self.rated = analysis.axes, bases, rated
        self._rounded = {own.name: own for own in groups if not own.nested and own.patches is None}
        model, places = _with_places(analysis.model, list(self._rounded.values()), schemes)
        walls = {name_of(wall.node.outputs[0]): bases.between[wall.name] for wall in boundaries(analysis)
                 if wall.name in bases.between}  # fmt: skip
        self._engine = Executor(model, hooked=[*places, *walls], device=device)
        self._fixed_hooks: dict[str, Hook] = {name: transform.apply for name, transform in walls.items()}
        self._places = {name: own for name, own in places.items() if name in self._engine.hooked}
        self._weights = self._bases_of(analysis, tables, schemes, torch.device(device))

    def __call__(self, batch: Batch) -> Mapping[str, Tensor]:
        """Outputs at the parameters' present values."""
        now = {own: own.matrices() for own in self._bases.parametrizations}
        hooks = {name: self._hook(group, fmt, now) for name, (group, fmt) in self._places.items()}
        self._engine.weights |= {name: self._weight(own, now) for name, own in self._weights.items()}
        return self._engine(batch, {**self._fixed_hooks, **hooks})

    def _hook(self, group: str, fmt: Format | None, now: Mapping[Parametrization, Matrices]) -> Hook:
        """Bring the input of sites into its basis, and round it there."""
        steps = self._steps(group, now)
        axis = self._rounded[group].axis

        def hook(value: Tensor) -> Tensor:
            rows = value.movedim(axis, -1)
            for apply, _ in steps:
                rows = apply(rows)
            if fmt is not None:
                rows = round_rows(rows.reshape(-1, rows.shape[-1]), fmt).reshape(rows.shape)
            return rows.movedim(-1, axis)

        return hook

    def _steps(self, group: str, now: Mapping[Parametrization, Matrices]) -> list[tuple[_Apply, _Apply]]:
        """The steps of an input's own basis, each with its dual, along the last axis."""
        bases, found = self._bases, list[tuple[_Apply, _Apply]]()
        for fixed, learned in ((bases.behind, bases.scales), (bases.online, bases.blocks)):
            if group in fixed:
                found.append((fixed[group].apply, fixed[group].dual().apply))
            if group in learned:
                matrices = now[learned[group]]
                found.append((_along_last(matrices, dual=False), _along_last(matrices, dual=True)))
        return found

    def _weight(self, own: _Weight, now: Mapping[Parametrization, Matrices]) -> Tensor:
        """A constant at the parameters' present values, rounded if it is the weight of a site."""
        found = own.base
        matrices = {node: now[learned] for node, learned in self._bases.learned.items()}
        for axis, ref in enumerate(own.refs):
            found = changed(self._axes, ref, matrices, found, axis)
        if own.axis is None:
            return found
        layout = layout_along(found.shape, own.axis)
        rows = layout.matrix(found)
        for _, apply in self._steps(own.group, now) if own.group is not None else ():
            rows = apply(rows)
        if own.scheme is not None and own.scheme.weight is not None:
            rows = round_weight(rows, own.scheme.weight)
        return layout.weight(rows)

    def _bases_of(
        self, analysis: Analysis, tables: Sequence[Site], schemes: Mapping[str, Scheme], device: torch.device
    ) -> dict[str, _Weight]:
        """Every constant that changes, by name."""
        sites: dict[ir.Value, tuple[int, Site, str | None]]
        sites = {site.weight: (site.axis_out, site, None) for site in tables}
        sites |= {site.weight: (site.axis_in, site, own.name) for own in self._rounded.values() for site in own.sites}
        found: dict[str, _Weight] = {}
        for value, refs in analysis.refs_of.items():
            if value.const_value is None or refs is None or not is_float(value):
                continue
            fixed = [axis_transform(analysis.axes, ref, self._bases.offline) for ref in refs]
            moves = any(leaf.node in self._bases.learned for ref in refs for leaf in analysis.axes.leaves(ref))
            if value not in sites and not moves and all(part is None for part in fixed):
                continue
            base = torch.from_numpy(read(constant(value)).astype(np.float64)).to(device)
            for axis, part in enumerate(fixed):
                base = base if part is None else part.apply(base, axis)
            axis_of, site, group = sites.get(value, (None, None, None))
            scheme = None if site is None else schemes.get(site.name)
            found[name_of(value)] = _Weight(base.float(), refs, axis_of, scheme, group)
        return found


_Apply = Callable[[Tensor], Tensor]


def _along_last(matrices: Matrices, *, dual: bool) -> _Apply:
    return lambda x: matrices.apply(x, -1, dual=dual)


def changed(axes: Axes, ref: Ref, learned: Mapping[AxisNode, Matrices], x: Tensor, axis: int) -> Tensor:
    """A tensor in the basis of learned matrices along one of its axes, which that reference describes."""
    root = axes.find(ref)
    if not any(leaf.node in learned for leaf in axes.leaves(root)):
        return x
    if root.node.structure is Structure.LEAF:
        matrices = learned[root.node]
        if root.mode is Mode.PLAIN:  # only diagonals pass here: they have no permutation
            return x
        return matrices.apply(x, axis, dual=root.mode is Mode.DUAL)
    children = axes.children(root)
    sizes = [axes.size(child) or 1 for child in children]
    if root.node.structure is Structure.SUM:
        parts = zip(children, x.split(sizes, axis), strict=True)
        return torch.cat([changed(axes, child, learned, part, axis) for child, part in parts], axis)
    parts_of = x.unflatten(axis, sizes)
    for offset, child in enumerate(children):
        parts_of = changed(axes, child, learned, parts_of, axis + offset)
    return parts_of.flatten(axis, axis + len(sizes) - 1)


def _with_places(
    model: ir.Model, groups: Sequence[Siblings], schemes: Mapping[str, Scheme]
) -> tuple[ir.Model, dict[str, tuple[str, Format | None]]]:
    """A copy in which sites read values of their own, by name of the group's value and the format."""
    model = model.clone()
    nodes = {node_name(node): node for node in model.graph}
    places: dict[str, tuple[str, Format | None]] = {}
    for own in groups:
        readers: dict[Format | None, list[ir.Node]] = defaultdict(list)
        for site in own.sites:
            readers[schemes[site.name].activation if site.name in schemes else None].append(nodes[site.name])
        for fmt, found in readers.items():
            value = next(value for value in found[0].inputs if value is not None and value.name == own.name)
            name = unique(model, f"{own.name}/turned")
            insert_place(found, value, name)
            places[name] = own.name, fmt
    return model, places
