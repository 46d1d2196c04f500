"""Rotate: put chosen transforms into the graph. What meets a constant folds, the rest stays as function nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.analysis.boundaries import boundaries
from qcompile.analysis.folding import axis_transform, change_axes, fold
from qcompile.analysis.scales import norm_before
from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Analysis
from qcompile.choice.placement import Placement, total_transform
from qcompile.errors import InternalError
from qcompile.ir.graph import add_initializer, append_node, bodies
from qcompile.ir.required import constant, dtype_of, graph_of, operand, rank_of, shape_of
from qcompile.ir.transform_nodes import Structure, append_transform
from qcompile.notes import FITTED_TRANSFORM
from qcompile.passes.state import State

if TYPE_CHECKING:
    from qcompile.transforms import Transform

__all__ = ["Rotate"]


@dataclass(frozen=True)
class Rotate:
    """Apply a placement.

    Args:
        analysis: of the graph as it stands.
        groups: the sites by the value that they read.
        placement: the chosen transforms.
    """

    analysis: Analysis
    groups: tuple[Siblings, ...]
    placement: Placement
    name: ClassVar[str] = "rotate"

    def apply(self, state: State) -> bool:
        """Folds offline transforms, then puts online ones in front of their sites."""
        fold(self.analysis, self.placement.offline)
        folded: set[tuple[ir.Value, int]] = set()
        for group in self.groups:
            name = group.name
            scale, transform = self.placement.behind.get(name), self.placement.online.get(name)
            if scale is not None:
                self._scale_norm(state.model, group, scale)
            if transform is not None:
                insert_online(state.model, group, transform, folded)
            elif (reason := self.placement.skipped.get(name)) is not None:
                for site in group.sites:
                    state.decline(site.name, "an online transform of its input", reason)
            if (reason := self.placement.unproven.get(name)) is not None:
                for site in group.sites:
                    state.decline(site.name, FITTED_TRANSFORM, reason)
        self._settle_ties(state)
        settled = self._settle_boundaries(state.model)
        changed = bool(self.placement.offline or self.placement.online or self.placement.behind or settled)
        if changed:
            state.edited()
        return changed

    def _scale_norm(self, model: ir.Model, group: Siblings, diagonal: Transform) -> None:
        """Multiply the output of the norm before a group, and divide the weights that read it."""
        import torch

        norm = norm_before(self.analysis, group)
        if norm is None or norm.scale is None:
            raise InternalError(f"no norm writes '{group.name}' for its sites alone")
        values = diagonal.apply(torch.ones(diagonal.size, dtype=torch.float64)).numpy()
        for parameter in (norm.scale, norm.shift):
            if parameter is not None:
                scaled = constant(parameter).numpy().astype(np.float64) * values
                made = add_initializer(model, f"{group.name}_scaled", scaled.astype(dtype_of(parameter).numpy()))
                norm.node.replace_input_with(list(norm.node.inputs).index(parameter), made)
        for weight, axis in dict.fromkeys((site.weight, site.axis_in) for site in group.sites):
            change_axes(model, weight, [(axis, diagonal.dual())])

    def _settle_ties(self, state: State) -> None:
        """Let heads that share a table have the rows of that table, where both are in one basis; the others part."""
        for group in self.groups:
            for site in group.sites:
                table = site.stored
                if table is site.weight:
                    continue
                rows = axis_transform(self.analysis.axes, self.analysis.refs(table)[1], self.placement.offline)
                if total_transform(self.analysis, group, self.placement) is rows and (rows is None or rows.orthogonal):
                    if rows is not None:
                        site.lay_out(table)
                    continue
                site.share(None)
                reason = "its rows change basis in another way than the input of the head"
                state.decline(site.name, f"sharing the table '{table.name}'", reason)

    def _settle_boundaries(self, model: ir.Model) -> int:
        """Boundaries between two bases become online transforms; the others go. Returns how many there were."""
        walls = boundaries(self.analysis)
        for wall in walls:
            value, (old,) = operand(wall.node, 0), wall.node.outputs
            new, name = value, old.name
            if wall.node.name in self.placement.boundaries:
                transform, _ = self.placement.boundaries[wall.node.name]
                new = _emit(model, wall.node, value, value, transform, f"{name}_transformed")
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            graph_of(wall.node).remove(wall.node, safe=True)
            if new.is_graph_output():
                old.name, new.name = None, name
        return len(walls)


def insert_online(
    model: ir.Model, group: Siblings, transform: Transform, folded: set[tuple[ir.Value, int]]
) -> ir.Value:
    """Put ``T`` between a value and its sites, and ``T⁻ᵀ`` into their weights along the axis that they read.

    Args:
        folded: the (weight, axis) pairs that have it already, because another group shares the weight; added to.
    """
    value = group.value
    dual = transform.dual()
    for weight, axis in dict.fromkeys((site.weight, site.axis_in) for site in group.sites):
        if (weight, axis) in folded:
            continue
        folded.add((weight, axis))
        change_axes(model, weight, [(axis, dual)])
    made = _along(model, group, transform, f"{group.name}_transformed")
    for site in group.sites:
        for index, given in enumerate(site.node.inputs):
            if given is value:
                site.node.replace_input_with(index, made)
    return made


def _along(model: ir.Model, group: Siblings, transform: Transform, name: str) -> ir.Value:
    """The value of a group with its features transformed: channels come last for it, and then back."""
    before, value, like = _first_reader(group), group.value, group.sites[0].weight
    if group.axis == -1 or _trails(value):
        return _emit(model, before, value, like, transform, name)
    rank = rank_of(value)
    there, back = (0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))
    last = append_node(before, "Transpose", [value], {"perm": there}, name=f"{name}/last").outputs[0]
    last.type, last.shape = value.type, ir.Shape([shape_of(value)[axis] for axis in there])
    made = _emit(model, before, last, like, transform, f"{name}/channels")
    return append_node(before, "Transpose", [made], {"perm": back}, name=name, like=value).outputs[0]


def _trails(value: ir.Value) -> bool:
    """Whether nothing but axes of one follow its channels, which run fastest then."""
    return all(size == 1 for size in shape_of(value)[2:])


def _first_reader(group: Siblings) -> ir.Node:
    """The first operator of the value's own graph that is a site of the group or holds one in its bodies."""
    wanted, graph = {site.node for site in group.sites}, group.value.graph
    if graph is None:
        raise InternalError(f"'{group.value.name}' is in no graph")
    if all(node.graph is graph for node in wanted):
        return group.sites[0].node  # they stand in the order of the graph
    within = (node for node in graph if wanted.intersection((node, *_inner(node))))
    return next(within)


def _inner(node: ir.Node) -> list[ir.Node]:
    return [inner for body in bodies(node) for inner in body.all_nodes()]


def _emit(
    model: ir.Model, before: ir.Node, value: ir.Value, like: ir.Value, transform: Transform, name: str
) -> ir.Value:
    """Put a function node for the transform of the last axis before a node; it computes in the type of ``like``."""
    steps = [(outer, inner, matrix.numpy()) for outer, inner, matrix in transform.factors()]
    return append_transform(model, before, value, Structure(transform.kind, steps), dtype_of(like).numpy(), name)
