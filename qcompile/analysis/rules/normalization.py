"""Normalizations and softmax: what a norm leaves is what its statistics are invariant under."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.analysis.axes import Mode, Ref
from qcompile.analysis.rules.elementwise import aligned, equal_numbers, is_one, zero
from qcompile.analysis.spaces import Analysis, Norm, rule
from qcompile.ir.functions import opset
from qcompile.ir.graph import is_read, label
from qcompile.ir.required import operand, optional
from qcompile.transforms.freedom import Freedom

__all__ = ["SCALED_NORMS"]

#: Normalizations over the last axis: (domain, operator) -> (subtracts the mean, first parameter's input index).
SCALED_NORMS: dict[tuple[str, str], tuple[bool, int]] = {
    ("", "LayerNormalization"): (True, 1),
    ("", "RMSNormalization"): (False, 1),
    ("", "SimplifiedLayerNormalization"): (False, 1),
    ("qcompile", "LayerNorm"): (True, 1),
    ("qcompile", "RMSNorm"): (False, 1),
    ("com.microsoft", "SkipLayerNormalization"): (True, 2),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): (False, 2),
}


def _norm(analysis: Analysis, node: ir.Node) -> None:
    centered, first = SCALED_NORMS[node.domain, node.op_type]
    refs = list(analysis.refs(node.inputs[0]))
    axis = node.attributes.get_int("axis", -1) % len(refs)
    shift = optional(node, first + 1) if centered else None
    scale = optional(node, first)
    bias = optional(node, first + (2 if centered else 1)) if first == 2 else None
    for value in [node.inputs[1], bias] if first == 2 else ():
        _add(analysis, node, refs, value)
    signs = (shift is None or zero(analysis, shift)) and not any(is_read(node, i) for i in (1, 2))
    rows = Freedom.SIGNED_PERMUTATION if signs else Freedom.PERMUTATION
    for ref in refs[:axis]:
        analysis.axes.constrain(ref, rows, f"{label(node)} treats each row by itself")
    out = list(refs)
    for ref in refs[axis:]:
        kept = Freedom.ORTHOGONAL_ONES if centered else Freedom.ORTHOGONAL
        analysis.axes.constrain(ref, kept, f"{label(node)} normalizes over it")
    if axis == len(refs) - 1:
        out[-1] = _last_axis(analysis, node, refs[-1], scale, shift, centered)
    elif scale is not None and not equal_numbers(analysis, scale, f"{label(node)} scales"):
        _scale(analysis, node, refs, scale)
    if shift is not None:
        _add(analysis, node, out, shift)
    analysis.set(node.outputs[0], out)
    for output in node.outputs[1:3]:  # the mean and the inverse deviation
        analysis.set(output, [*refs[:axis], *[analysis.axes.one] * (len(refs) - axis)])
    for output in node.outputs[3:]:  # the sum of input and skip
        analysis.set(output, refs)


def _pairs(analysis: Analysis, refs: list[Ref], value: ir.Value) -> list[tuple[Ref, Ref]]:
    """The axes of a tensor with those of a parameter that is broadcast to it."""
    own = analysis.refs(value)
    return list(zip(refs, [analysis.axes.one] * (len(refs) - len(own)) + list(own), strict=True))


def _add(analysis: Analysis, node: ir.Node, refs: list[Ref], value: ir.Value | None) -> None:
    """Join a summand; one that is repeated along an axis is one number there."""
    for ref, other in _pairs(analysis, refs, value) if value is not None else ():
        if not is_one(analysis, other):
            analysis.axes.unify(ref, other, f"{label(node)} adds them")
        elif not is_one(analysis, ref) and not zero(analysis, value):
            analysis.axes.constrain(ref, Freedom.ORTHOGONAL_ONES, f"{label(node)} adds one number along the axis")


def _scale(analysis: Analysis, node: ir.Node, refs: list[Ref], value: ir.Value) -> None:
    """Join the axes of a scale that stays in the graph."""
    reason = f"{label(node)} has a scale that could not be folded away"
    for ref, other in _pairs(analysis, refs, value):
        if not is_one(analysis, other):
            analysis.axes.unify(other, ref.through(Mode.PLAIN), reason)


def _last_axis(
    analysis: Analysis, node: ir.Node, ref: Ref, scale: ir.Value | None, shift: ir.Value | None, centered: bool
) -> Ref:
    """The axis behind a norm over the last one, as the passes that fold its scale need it."""
    out = ref
    if not analysis.join_norms:
        out = analysis.axes.fresh(analysis.axes.size(ref))
        analysis.freeze([scale], f"{label(node)} scales with it")
    elif scale is not None and not equal_numbers(analysis, scale, f"{label(node)} scales"):
        _scale(analysis, node, list(analysis.refs(node.inputs[0])), scale)
    analysis.norms.append(Norm(node, ref, out, scale, shift, centered))
    return out


for _domain, _op in SCALED_NORMS:
    rule(_op, domain=_domain)(_norm)


@rule("LpNormalization")
def lp_norm(analysis: Analysis, node: ir.Node) -> None:
    """Division by the 2-norm commutes with rotations, by the 1-norm with signed permutations."""
    refs = analysis.refs(node.inputs[0])
    axis = node.attributes.get_int("axis", -1) % len(refs)
    kept = Freedom.ORTHOGONAL if node.attributes.get_int("p", 2) == 2 else Freedom.SIGNED_PERMUTATION
    for i, ref in enumerate(refs):
        group = kept if i == axis else Freedom.SIGNED_PERMUTATION
        analysis.axes.constrain(ref, group, f"{label(node)} normalizes over it")
    analysis.set(node.outputs[0], refs)


@rule("Hardmax")
def hardmax(analysis: Analysis, node: ir.Node) -> None:
    """The first of equal elements is taken: places have a meaning. Before opset 13 on all axes from the one given."""
    refs = analysis.refs(node.inputs[0])
    default = -1 if opset(analysis.model) >= 13 else 1
    axis = node.attributes.get_int("axis", default) % len(refs)
    for i, ref in enumerate(refs):
        kept = Freedom.NONE if i >= axis else Freedom.PERMUTATION
        analysis.axes.constrain(ref, kept, f"{label(node)} takes the first of equal elements")
    analysis.set(node.outputs[0], refs)


@rule("Softmax", "LogSoftmax")
@rule("BiasSoftmax", domain="com.microsoft")
def softmax(analysis: Analysis, node: ir.Node) -> None:
    """Exponentials are taken one by one, their sum does not depend on the order."""
    out = []
    for column in aligned(analysis, node.inputs):
        wide = [ref for ref in column if not is_one(analysis, ref)] or column[:1]
        for ref in wide:
            analysis.axes.constrain(ref, Freedom.PERMUTATION, f"{label(node)} acts on each element")
            analysis.axes.unify(wide[0], ref, f"{label(node)} adds its bias")
        out.append(wide[0])
    analysis.set(node.outputs[0], out)


@rule("BatchNormalization")
def batch_norm(analysis: Analysis, node: ir.Node) -> None:
    """One scale and shift per channel, known beforehand."""
    refs = list(analysis.refs(node.inputs[0]))
    reason = f"{label(node)} scales each channel"
    if node.attributes.get_int("training_mode", 0) or any(is_read(node, i) for i in range(1, len(node.outputs))):
        analysis.opaque(node, f"{label(node)} takes its statistics from the batch")
        return
    for i, ref in enumerate(refs):
        kept = Freedom.MONOMIAL if i == 1 else Freedom.ORTHOGONAL_ONES
        analysis.axes.constrain(ref, kept, reason)
    scale, shift, mean, variance = (analysis.refs(value)[0] for value in node.inputs[1:5])
    for same in (shift, mean):
        analysis.axes.unify(refs[1], same, reason)
    for plain in (scale, variance):
        analysis.axes.unify(plain, refs[1].through(Mode.PLAIN), reason)
    analysis.set(node.outputs[0], refs)


@rule("InstanceNormalization", "GroupNormalization")
def group_norm(analysis: Analysis, node: ir.Node) -> None:
    """Statistics over places and a group of channels: within a group what keeps the ones vector, if scaled equally."""
    refs = list(analysis.refs(node.inputs[0]))
    size = analysis.axes.size(refs[1])
    groups = node.attributes.get_int("num_groups", size or 0)
    parts = analysis.axes.as_product(refs[1], [groups, size // groups], label(node)) if size and groups else None
    if parts is None or analysis.axes.size(analysis.refs(node.inputs[1])[0]) != size:
        analysis.opaque(node, f"{label(node)} has groups that cannot be followed")
        return
    signs = zero(analysis, node.inputs[2])
    samples = Freedom.SIGNED_PERMUTATION if signs else Freedom.PERMUTATION
    analysis.axes.constrain(refs[0], samples, f"{label(node)} treats each sample by itself")
    analysis.axes.constrain(parts[0], Freedom.SIGNED_PERMUTATION, f"{label(node)} treats each group by itself")
    for ref in (parts[1], *refs[2:]):
        analysis.axes.constrain(ref, Freedom.ORTHOGONAL_ONES, f"{label(node)} has statistics over it")
    channel_parameters(analysis, node, refs[1], operand(node, 1), operand(node, 2))
    analysis.set(node.outputs[0], refs)


def channel_parameters(analysis: Analysis, node: ir.Node, channels: Ref, scale: ir.Value, shift: ir.Value) -> None:
    """A scale and a shift per channel behind a normalization."""
    reason = f"{label(node)} scales each channel"
    if not equal_numbers(analysis, scale, reason):
        analysis.axes.unify(analysis.refs(scale)[0], channels.through(Mode.PLAIN), reason)
    analysis.axes.unify(analysis.refs(shift)[0], channels, reason)


@rule("LRN")
def local_response(analysis: Analysis, node: ir.Node) -> None:
    """Divides each channel by its neighbours."""
    refs = list(analysis.refs(node.inputs[0]))
    for i, ref in enumerate(refs):
        kept = Freedom.SIGNS if i == 1 else Freedom.SIGNED_PERMUTATION
        analysis.axes.constrain(ref, kept, f"{label(node)} divides by neighbouring channels")
    analysis.set(node.outputs[0], refs)


@rule("MeanVarianceNormalization")
def mean_variance(analysis: Analysis, node: ir.Node) -> None:
    """Centers and divides by the deviation over the given axes."""
    refs = list(analysis.refs(node.inputs[0]))
    over = {axis % len(refs) for axis in node.attributes.get_ints("axes", [0, 2, 3])}
    for i, ref in enumerate(refs):
        kept = Freedom.ORTHOGONAL_ONES if i in over else Freedom.SIGNED_PERMUTATION
        analysis.axes.constrain(ref, kept, f"{label(node)} normalizes over it")
    analysis.set(node.outputs[0], refs)
