"""Operators that pick elements by indices computed at run time: routers of experts, masks of positions."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.analysis.axes import Mode, Ref
from qcompile.analysis.rules.elementwise import is_one
from qcompile.analysis.spaces import Analysis, rule
from qcompile.ir.graph import label, static
from qcompile.ir.required import operand, operands
from qcompile.transforms.freedom import Freedom

__all__ = ["repeats"]


def repeats(analysis: Analysis, value: ir.Value, axis: int) -> bool:
    """Whether a value was made by repeating one element along an axis, so that it is the same for every index there."""
    node = value.producer()
    while node is not None and node.op_type in ("Cast", "Identity"):
        node = operand(node, 0).producer()
    if node is None or node.op_type != "Expand" or node.domain:
        return False
    refs, rank = analysis.refs_or_none(operand(node, 0)), len(analysis.refs(value))
    if refs is None:
        return False
    place = axis - (rank - len(refs))
    return place < 0 or is_one(analysis, refs[place])


def _picked(analysis: Analysis, node: ir.Node, ref: Ref, index: Ref, same: bool) -> None:
    """Join an axis of the data with that of the indices beside it: each element picks for itself, or all alike."""
    reason = f"{label(node)} picks for each element"
    if same:  # made by repetition, so the vector of ones is kept already
        return
    analysis.axes.unify(index, ref.through(Mode.PLAIN), reason)


def _cut(analysis: Analysis, ref: Ref, other: Ref) -> bool:
    """Whether one of the two axes may be shorter than the other, so that they are not one axis."""
    size = analysis.axes.size(ref)
    return size != analysis.axes.size(other) or (size is None and not analysis.axes.same(ref, other))


#: What a reduction of updates into the data leaves.
_REDUCTIONS = {
    "none": Freedom.GENERAL, "add": Freedom.GENERAL, "mul": Freedom.PERMUTATION, "max": Freedom.POSITIVE_MONOMIAL,
    "min": Freedom.POSITIVE_MONOMIAL,
}  # fmt: skip


@rule("GatherElements")
def gather_elements(analysis: Analysis, node: ir.Node) -> None:
    """Each place picks an element along one axis; along the others its place is that of its index."""
    data, indices = operands(node)
    refs, at = list(analysis.refs(data)), list(analysis.refs(indices))
    axis = node.attributes.get_int("axis", 0) % len(refs)
    analysis.axes.constrain(refs[axis], Freedom.NONE, f"{label(node)} picks along it")
    out = []
    for i, (ref, index) in enumerate(zip(refs, at, strict=True)):
        if i == axis:
            analysis.axes.constrain(index, Freedom.PERMUTATION, f"{label(node)} picks for each element")
            out.append(index)
        elif _cut(analysis, ref, index):
            for side in (ref, index):
                analysis.axes.constrain(side, Freedom.NONE, f"{label(node)} may take a part of it")
            out.append(index)
        else:
            _picked(analysis, node, ref, index, repeats(analysis, indices, i))
            out.append(ref)
    analysis.set(node.outputs[0], out)


@rule("ScatterElements", "Scatter")
def scatter_elements(analysis: Analysis, node: ir.Node) -> None:
    """Each update goes to a place along one axis; along the others it stays in its place."""
    data, indices, updates = operands(node)
    refs, at, new = (list(analysis.refs(value)) for value in (data, indices, updates))
    axis = node.attributes.get_int("axis", 0) % len(refs)
    for i, (ref, index, update) in enumerate(zip(refs, at, new, strict=True)):
        if i == axis or _cut(analysis, ref, index) or _cut(analysis, ref, update):
            for side in (ref, index, update):
                analysis.axes.constrain(side, Freedom.NONE, f"{label(node)} puts elements along it")
            continue
        analysis.axes.unify(ref, update, f"{label(node)} puts one into the other")
        _picked(analysis, node, ref, index, repeats(analysis, indices, i))
        analysis.axes.constrain(ref, _REDUCTIONS[node.attributes.get_string("reduction", "none")], label(node))
    analysis.set(node.outputs[0], refs)


@rule("GatherND")
def gather_nd(analysis: Analysis, node: ir.Node) -> None:
    """Looks up whole slices: the axes that are indexed stay as they are, the others pass through."""
    data, indices = operands(node)
    refs, at = list(analysis.refs(data)), list(analysis.refs(indices))
    shared, depth = node.attributes.get_int("batch_dims", 0), analysis.axes.size(at[-1])
    if depth is None or shared:
        analysis.opaque(node, f"{label(node)} indexes axes that are not known beforehand, or shares a batch")
        return
    for ref in (*refs[:depth], at[-1]):
        analysis.axes.constrain(ref, Freedom.NONE, f"{label(node)} indexes it")
    for ref in at[:-1]:
        analysis.axes.constrain(ref, Freedom.PERMUTATION, f"{label(node)} looks up each element")
    analysis.set(node.outputs[0], [*at[:-1], *refs[depth:]])


@rule("ScatterND")
def scatter_nd(analysis: Analysis, node: ir.Node) -> None:
    """Puts whole slices in places: the axes that are indexed stay as they are, the others are linear."""
    data, indices, updates = operands(node)
    refs, at, new = (list(analysis.refs(value)) for value in (data, indices, updates))
    depth = analysis.axes.size(at[-1])
    if depth is None or len(new) != len(at) - 1 + len(refs) - depth:
        analysis.opaque(node, f"{label(node)} indexes axes that are not known beforehand")
        return
    for ref in (*refs[:depth], *at, *new[: len(at) - 1]):
        analysis.axes.constrain(ref, Freedom.NONE, f"{label(node)} puts slices along it")
    for ref, update in zip(refs[depth:], new[len(at) - 1 :], strict=True):
        analysis.axes.unify(ref, update, f"{label(node)} puts one into the other")
        analysis.axes.constrain(ref, _REDUCTIONS[node.attributes.get_string("reduction", "none")], label(node))
    analysis.set(node.outputs[0], refs)


@rule("TopK")
def top_k(analysis: Analysis, node: ir.Node) -> None:
    """Sorts along one axis, each row by itself; a positive factor keeps the order."""
    refs = list(analysis.refs(node.inputs[0]))
    axis = node.attributes.get_int("axis", -1) % len(refs)
    for i, ref in enumerate(refs):
        kept = Freedom.NONE if i == axis else Freedom.POSITIVE_MONOMIAL
        analysis.axes.constrain(ref, kept, f"{label(node)} sorts " + ("it" if i == axis else "each row"))
    count = analysis.constant(node.inputs[1])
    size = None if count is None else int(count.reshape(-1)[0])
    refs[axis] = analysis.axes.frozen(size, f"{label(node)} sorts it")
    values, indices = node.outputs
    analysis.set(values, refs)
    analysis.set(indices, [ref.through(Mode.PLAIN) for ref in refs])


@rule("OneHot")
def one_hot(analysis: Analysis, node: ir.Node) -> None:
    """A new axis on which the index means the place."""
    refs = list(analysis.refs(node.inputs[0]))
    for ref in refs:
        analysis.axes.constrain(ref, Freedom.PERMUTATION, f"{label(node)} counts each element")
    place = node.attributes.get_int("axis", -1) % (len(refs) + 1)
    depth = analysis.constant(node.inputs[1])
    size = None if depth is None else int(depth.reshape(-1)[0])
    analysis.freeze(node.inputs[1:], f"{label(node)} uses it as it is")
    refs.insert(place, analysis.axes.frozen(size, f"{label(node)} counts along it"))
    analysis.set(node.outputs[0], refs)


@rule("NonZero")
def non_zero(analysis: Analysis, node: ir.Node) -> None:
    """The places of elements mean their places."""
    reason = f"{label(node)} tells places"
    analysis.freeze(node.inputs, reason)
    shape = node.outputs[0].shape
    refs = analysis.refs(node.inputs[0])
    count = static(shape[1]) if shape is not None and len(shape) == 2 else None
    analysis.set(node.outputs[0], [analysis.axes.frozen(len(refs), reason), analysis.axes.frozen(count, reason)])
