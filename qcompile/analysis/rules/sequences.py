"""Sequences of tensors: all elements have the axes of one, which is what a sequence is taken to have itself."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qcompile.analysis.axes import Ref
from qcompile.analysis.spaces import Analysis, rule
from qcompile.ir.graph import label, static
from qcompile.ir.required import optional
from qcompile.transforms.freedom import Freedom

__all__: list[str] = []


def _alike(analysis: Analysis, node: ir.Node, values: Sequence[ir.Value | None]) -> list[Ref] | None:
    """The axes that stand for those of all values, joined; ``None`` if they differ in number."""
    columns = [analysis.refs(value) for value in values]
    if len({len(refs) for refs in columns}) > 1:
        return None
    return [_one(analysis, node, list(column)) for column in zip(*columns, strict=True)]


def _one(analysis: Analysis, node: ir.Node, column: list[Ref]) -> Ref:
    axes, reason = analysis.axes, f"{label(node)} puts them into one sequence"
    first, sizes = column[0], {axes.size(ref) for ref in column}
    if all(axes.same(first, ref) for ref in column):
        return first
    if len(sizes) == 1 and None not in sizes:
        for ref in column[1:]:
            axes.unify(first, ref, reason)
        return first
    for ref in column:
        axes.constrain(ref, Freedom.NONE, f"{reason}, though they may differ in size")
    return axes.frozen(None, reason)


@rule("SequenceConstruct", "SequenceInsert")
def construct(analysis: Analysis, node: ir.Node) -> None:
    """All elements change basis alike."""
    parts = node.inputs if node.op_type == "SequenceConstruct" else node.inputs[:2]
    refs = _alike(analysis, node, parts)
    if refs is None:
        analysis.opaque(node, f"{label(node)} has elements that differ in rank")
        return
    analysis.set(node.outputs[0], refs)


@rule("SequenceAt", "SequenceErase")
def at(analysis: Analysis, node: ir.Node) -> None:
    """An element, or the sequence without it, has the axes of all."""
    analysis.set(node.outputs[0], analysis.refs(node.inputs[0]))


@rule("SequenceLength")
def length(analysis: Analysis, node: ir.Node) -> None:
    """The number of elements does not depend on the basis."""
    analysis.set(node.outputs[0], [])


@rule("SplitToSequence")
def split_to_sequence(analysis: Analysis, node: ir.Node) -> None:
    """Cuts one axis, whose elements keep their order; the others pass."""
    refs = list(analysis.refs(node.inputs[0]))
    axis, reason = node.attributes.get_int("axis", 0) % len(refs), f"{label(node)} cuts it into a sequence"
    analysis.axes.constrain(refs[axis], Freedom.NONE, reason)
    if optional(node, 1) is not None:
        refs[axis] = analysis.axes.frozen(None, reason)
    elif node.attributes.get_int("keepdims", 1):
        refs[axis] = analysis.axes.one
    else:
        del refs[axis]
    analysis.set(node.outputs[0], refs)


@rule("ConcatFromSequence")
def concat_from_sequence(analysis: Analysis, node: ir.Node) -> None:
    """Lays elements side by side along an axis that keeps its order; the others pass."""
    refs, stated = list(analysis.refs(node.inputs[0])), node.outputs[0].shape
    new, reason = node.attributes.get_int("new_axis", 0), f"{label(node)} lays elements side by side along it"
    place = node.attributes.get_int("axis") % (len(refs) + new)
    if not new:
        analysis.axes.constrain(refs[place], Freedom.NONE, reason)
        del refs[place]
    refs.insert(place, analysis.axes.frozen(static(stated[place]) if stated is not None else None, reason))
    analysis.set(node.outputs[0], refs)
