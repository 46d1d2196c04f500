"""Normalizations and softmax: what a norm leaves is what its statistics are invariant under."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.axes import Mode, Ref
from qcompile.freedom import Freedom
from qcompile.spaces import Analysis, Norm, label, rule

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


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _norm(analysis: Analysis, node: ir.Node) -> None:
    centered, first = SCALED_NORMS[node.domain, node.op_type]
    refs = list(analysis.refs(node.inputs[0]))
    axis = node.attributes.get_int("axis", -1) % len(refs)
    if axis != len(refs) - 1:
        analysis.opaque(node, f"{label(node)} normalizes over several axes")
        return
    if first == 2:
        for ref, skip in zip(refs, analysis.refs(node.inputs[1]), strict=True):
            analysis.axes.unify(ref, skip, f"{label(node)} adds its skip input")
    for ref in refs[:-1]:
        analysis.axes.constrain(ref, Freedom.PERMUTATION, f"{label(node)} treats each row by itself")
    shift = _input(node, first + 1) if centered else None
    out = _over_axis(analysis, node, refs[-1], _input(node, first), shift, centered)
    analysis.set(node.outputs[0], [*refs[:-1], out])
    for output in node.outputs[1:3]:  # the mean and the inverse deviation
        analysis.set(output, [*refs[:-1], analysis.axes.one])
    for output in node.outputs[3:]:  # the sum of input and skip
        analysis.set(output, refs)
    bias = _input(node, first + (2 if centered else 1)) if first == 2 else None
    if bias is not None:
        analysis.axes.unify(refs[-1], analysis.refs(bias)[-1], f"{label(node)} adds its bias")


def _over_axis(
    analysis: Analysis, node: ir.Node, ref: Ref, scale: ir.Value | None, shift: ir.Value | None, centered: bool
) -> Ref:
    axes = analysis.axes
    kept = Freedom.ORTHOGONAL_ONES if centered else Freedom.ORTHOGONAL
    axes.constrain(ref, kept, f"{label(node)} normalizes over it")
    out = ref
    if not analysis.join_norms:
        out = axes.fresh(axes.size(ref))
    elif scale is not None and not analysis.uniform(scale):
        reason = f"{label(node)} has a scale that could not be folded away"
        axes.constrain(ref, Freedom.MONOMIAL, reason)
        axes.unify(analysis.refs(scale)[-1], ref.through(Mode.PLAIN), reason)
    if scale is not None and (not analysis.join_norms or analysis.uniform(scale)):
        analysis.freeze([scale], f"{label(node)} scales with it")
    if shift is not None:
        axes.unify(analysis.refs(shift)[-1], out, f"{label(node)} adds its shift")
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
        analysis.axes.constrain(ref, kept if i == axis else Freedom.PERMUTATION, f"{label(node)} normalizes over it")
    analysis.set(node.outputs[0], refs)


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(analysis: Analysis, node: ir.Node) -> None:
    """Exponentials are taken one by one, their sum does not depend on the order."""
    refs = analysis.refs(node.inputs[0])
    for ref in refs:
        analysis.axes.constrain(ref, Freedom.PERMUTATION, f"{label(node)} acts on each element")
    analysis.set(node.outputs[0], refs)


@rule("BatchNormalization")
def batch_norm(analysis: Analysis, node: ir.Node) -> None:
    """One scale and shift per channel, known beforehand."""
    refs = list(analysis.refs(node.inputs[0]))
    reason = f"{label(node)} scales each channel"
    analysis.axes.constrain(refs[1], Freedom.SIGNED_PERMUTATION, reason)
    scale, shift, mean, variance = (analysis.refs(value)[0] for value in node.inputs[1:5])
    for same in (shift, mean):
        analysis.axes.unify(refs[1], same, reason)
    for plain in (scale, variance):
        analysis.axes.unify(plain, refs[1].through(Mode.PLAIN), reason)
    analysis.set(node.outputs[0], refs)


@rule("InstanceNormalization", "GroupNormalization")
def group_norm(analysis: Analysis, node: ir.Node) -> None:
    """Statistics per group of channels, a scale per channel: no basis change but the identity is used."""
    refs = list(analysis.refs(node.inputs[0]))
    for ref in refs[1:]:
        analysis.axes.constrain(ref, Freedom.NONE, f"{label(node)} has statistics over groups of it")
    analysis.freeze(node.inputs[1:], label(node))
    analysis.set(node.outputs[0], refs)
