"""Fold scales: constant scales along an axis move into the sites around them.

A norm's γ, a layer scale, 1+γ once it is one constant: forward into the sites that read it, or backward into the
sites that write it, whichever the freedoms allow.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.analysis.axes import AxisNode, Mode, Ref, Structure
from qcompile.analysis.folding import change_axes
from qcompile.analysis.spaces import Analysis, Norm, Scaling
from qcompile.errors import InternalError
from qcompile.ir.graph import add_initializer, ensure_initializer, label
from qcompile.ir.required import constant, dtype_of, graph_of, operands, rank_of, sizes_of
from qcompile.passes.state import State
from qcompile.transforms.freedom import Freedom

__all__ = ["FoldScales"]


@dataclass(frozen=True)
class FoldScales:
    """Fold constant scales into sites.

    Args:
        smallest: a shift may be divided by a scale no smaller than this fraction of the largest.
        norms: whether scales of norms alone are folded, and forward: their place stays, with ones in it.
    """

    smallest: float = 1e-3
    norms: bool = False
    name: ClassVar[str] = "fold-scales"

    def apply(self, state: State) -> bool:
        """Rewrite the graph in place; its function stays the same."""
        total = 0 if self.norms else _merge_chains(state.analyze_apart())
        refused: dict[ir.Node, str] = {}
        if total:
            state.edited()
        while True:  # a scale may be free to move once another one has
            folded, refused = _fold_scales(state, self)
            total += folded
            if folded:
                state.edited()
            if not folded or not refused:
                break
        for node, reason in refused.items():
            state.decline(node.name or label(node), "folding its scale into the sites around it", reason)
        return bool(total)


def _merge_chains(analysis: Analysis) -> int:
    """Make one scale of those that directly follow each other."""
    writers = {item.node.outputs[0]: item for item in analysis.scalings}
    merged = 0
    for item in analysis.scalings:
        before, between = writers.get(item.input), item.input
        if before is None or before.ref_out != item.ref_in or len(between.uses()) > 1 or between.is_graph_output():
            continue
        first, last = (constant(scale).numpy().astype(np.float64) for scale in (before.scale, item.scale))
        product = (first.reshape(last.shape) * last).astype(dtype_of(item.scale).numpy())
        made = add_initializer(analysis.model, f"{item.scale.name}_merged", product)
        item.node.replace_input_with(list(item.node.inputs).index(item.scale), made)
        item.scale = made
        _drop_scale(analysis.model, before)
        merged += 1
    return merged


def _fold_scales(state: State, asked: FoldScales) -> tuple[int, dict[ir.Node, str]]:
    """One round: how many scales were folded, and why the others were not."""
    around = _Around(state.analyze_apart(), asked.smallest)
    folded = 0
    refused: dict[ir.Node, str] = {}
    for node, group in _by_space(around.analysis).items():
        if asked.norms and not all(isinstance(item, Norm) for item in group):
            continue
        reason = _fold_forward(around, node, group)
        scalings = [item for item in group if isinstance(item, Scaling)]
        if reason is not None and len(scalings) == len(group):
            reasons = [_fold_backward(around, item) for item in scalings]
            reason = next((text for text in reasons if text is not None), None)
        if reason is None:
            folded += len(group)
        else:
            refused |= {item.node: reason for item in group}
    return folded, refused


class _Around:
    """What reads and writes each leaf, as a whole axis or as a part of one."""

    def __init__(self, analysis: Analysis, smallest: float) -> None:
        self.analysis, self.smallest = analysis, smallest
        self.uses = analysis.uses()
        self.scaled: dict[AxisNode, list[Scaling]] = defaultdict(list)
        self.scales: dict[AxisNode, list[Norm | Scaling]] = defaultdict(list)
        for scaling in analysis.scalings:
            for leaf in analysis.axes.leaves(scaling.ref_in):
                self.scaled[leaf.node].append(scaling)
        for item in _scaled(analysis):
            for leaf in analysis.axes.leaves(item.ref_out):
                self.scales[leaf.node].append(item)

    def constants(self, node: AxisNode) -> list[tuple[ir.Value, int]]:
        """The constants that have the leaf, each with the axis."""
        return [(value, axis) for value, axis in self.uses[node] if value.const_value is not None]


def _scaled(analysis: Analysis) -> list[Norm | Scaling]:
    """All that may have a scale."""
    return [*analysis.norms, *analysis.scalings]


def _scale_of(item: Norm | Scaling) -> ir.Value:
    """The scale of a norm that has one, or of a scaling."""
    if item.scale is None:
        raise InternalError(f"{label(item.node)} has no scale")
    return item.scale


def _by_space(analysis: Analysis) -> dict[AxisNode, list[Norm | Scaling]]:
    groups: dict[AxisNode, list[Norm | Scaling]] = defaultdict(list)
    for item in _scaled(analysis):
        if item.scale is not None and item.scale.const_value is not None and not analysis.uniform(item.scale):
            groups[analysis.axes.find(item.ref_out).node].append(item)
    return groups


def _fold_forward(around: _Around, node: AxisNode, group: list[Norm | Scaling]) -> str | None:
    """Fold the scale of one space into its readers; the reason if that cannot be done."""
    analysis = around.analysis
    scale = constant(_scale_of(group[0])).numpy().astype(np.float64).reshape(-1)
    if any(not np.array_equal(constant(_scale_of(item)).numpy().reshape(-1), scale) for item in group[1:]):
        return "several scales that differ are applied on one space"
    base = group[0].ref_out
    if node.structure is not Structure.LEAF or any(analysis.relative(i.ref_out, base) is not Mode.SAME for i in group):
        return "the scaled axis is split by later operators"
    reason = _why_not(node, Freedom.DIAGONAL)
    constants = around.constants(node)
    if reason is None and _has_shifts(analysis, constants, base) and not _well_conditioned(scale, around.smallest):
        reason = "a shift is added behind the scale, which is too small on some channels to divide by"
    if reason is None and not _alone(analysis, node, constants):
        reason = "the scaled axis is a part of a larger one"
    if reason is None and around.scaled[node]:
        reason = "another scaling reads it"
    if reason is None and _written_by_sites(analysis, base, around.uses[node]):
        reason = "other operators write the same space"
    if reason is not None:
        return reason
    for value, axis in constants:
        _scale_constant(analysis, value, axis, base, scale)
    for item in group:
        _drop_scale(analysis.model, item)
    return None


def _why_not(node: AxisNode, wanted: Freedom) -> str | None:
    if wanted in node.freedom:
        return None
    limits = [limit for limit in node.limits if wanted not in limit.freedom]
    return limits[0].reason if limits else f"the space is only {node.freedom.label}"


def _alone(analysis: Analysis, node: AxisNode, constants: list[tuple[ir.Value, int]]) -> bool:
    """Whether the leaf is a whole axis of each of those constants."""
    return all(analysis.axes.find(analysis.refs(value)[axis]).node is node for value, axis in constants)


def _has_shifts(analysis: Analysis, constants: list[tuple[ir.Value, int]], base: Ref) -> bool:
    return any(
        analysis.relative(analysis.refs(value)[axis], base) is Mode.SAME and constant(value).numpy().any()
        for value, axis in constants
    )


def _well_conditioned(scale: np.ndarray, smallest: float) -> bool:
    size = np.abs(scale)
    return bool(size.min() > smallest * size.max())


def _written_by_sites(analysis: Analysis, base: Ref, uses: list[tuple[ir.Value, int]]) -> bool:
    """Whether a site writes the space: its weight would have to be divided by the scale."""
    return any(
        value.const_value is not None
        and rank_of(value) > 1
        and analysis.relative(analysis.refs(value)[axis], base) is Mode.SAME
        for value, axis in uses
    )


def _scale_constant(analysis: Analysis, value: ir.Value, axis: int, base: Ref, scale: np.ndarray) -> None:
    mode = analysis.relative(analysis.refs(value)[axis], base)
    if mode is Mode.DUAL:
        change_axes(analysis.model, value, [(axis, scale)])
    elif mode is Mode.SAME:
        change_axes(analysis.model, value, [(axis, 1 / np.where(scale == 0, 1, scale))])


def _drop_scale(model: ir.Model, item: Norm | Scaling) -> None:
    if isinstance(item, Norm):
        scale = _scale_of(item)
        index = list(item.node.inputs).index(scale)
        size, dtype = sizes_of(scale)[-1], dtype_of(scale)
        ones = ensure_initializer(model, f"ones_{size}_{dtype.name.lower()}", np.ones(size, dtype.numpy()))
        item.node.replace_input_with(index, ones)
        return
    source = next(value for value in operands(item.node) if value is not item.scale)
    ir.convenience.replace_all_uses_with(item.node.outputs[0], source, replace_graph_outputs=True)
    graph_of(item.node).remove(item.node, safe=True)


def _fold_backward(around: _Around, item: Scaling) -> str | None:
    """Fold a scaling into the sites that write its input; the reason if that cannot be done."""
    analysis = around.analysis
    root = analysis.axes.find(item.ref_in)
    scale = constant(item.scale).numpy().astype(np.float64).reshape(-1)
    if root.node.structure is not Structure.LEAF:
        return "the scaled axis is made of several parts"
    reason = _why_not(root.node, Freedom.DIAGONAL)
    if reason is not None:
        return reason
    constants = around.constants(root.node)
    refs = [analysis.refs(value)[axis] for value, axis in constants]
    if not _alone(analysis, root.node, constants):
        return "the scaled axis is a part of a larger one"
    if any(analysis.relative(ref, item.ref_in) is not Mode.SAME for ref in refs):
        return "something else reads the value before it is scaled"
    if around.scaled[root.node] != [item]:
        return "something else reads the value before it is scaled"
    if any(isinstance(other, Scaling) for other in around.scales[root.node]):
        return "another scaling writes it"
    if any(analysis.axes.find(norm.ref_out).node is not root.node for norm in around.scales[root.node]):
        return "it is a part of what a norm writes"
    scales = [_scale_of(norm) for norm in around.scales[root.node]]
    constants += [(value, rank_of(value) - 1) for value in scales]
    for value, axis in constants:
        change_axes(analysis.model, value, [(axis, scale)])
    _drop_scale(analysis.model, item)
    return None
