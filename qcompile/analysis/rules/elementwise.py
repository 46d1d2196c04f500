"""Operators that act on each element, alone or with the element of another tensor at the same place."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qcompile.analysis.axes import Mode, Ref
from qcompile.analysis.spaces import Analysis, Rule, Scaling, rule
from qcompile.ir.graph import is_read, label
from qcompile.ir.required import operand, operands, optional
from qcompile.transforms.freedom import Freedom

__all__ = ["UNARY", "carry", "equal_numbers", "gate", "is_one", "product_of", "zero"]

#: f(Tx) = T f(x) for each operator f.
UNARY: dict[Freedom, tuple[str, ...]] = {
    # linear
    Freedom.GENERAL: ("Identity", "Neg"),
    # odd: f(-x) = -f(x)
    Freedom.SIGNED_PERMUTATION: (
        "Asin", "Asinh", "Atan", "Atanh", "Erf", "Reciprocal", "Round", "Shrink", "Sign", "Sin", "Sinh", "Softsign",
        "Tan", "Tanh",
    ),
    # positively homogeneous: f(ax) = a f(x) for a > 0
    Freedom.POSITIVE_MONOMIAL: ("Abs", "LeakyRelu", "Relu"),
    Freedom.PERMUTATION: (
        "Acos", "Acosh", "BitCast", "BitwiseNot", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Exp", "Floor", "Gelu",
        "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "Log", "Mish", "Not", "Selu", "Sigmoid", "Softplus",
        "Sqrt", "Swish", "ThresholdedRelu",
    ),
}  # fmt: skip


def _unary(freedom: Freedom) -> Rule:
    def apply(analysis: Analysis, node: ir.Node) -> None:
        refs = analysis.refs(node.inputs[0])
        for ref in refs:
            analysis.axes.constrain(ref, freedom, f"{label(node)} acts on each element")
        for output in node.outputs:
            analysis.set(output, refs)

    return apply


for _freedom, _ops in UNARY.items():
    rule(*_ops)(_unary(_freedom))
rule("QuickGelu", "Gelu", domain="com.microsoft")(_unary(Freedom.PERMUTATION))


@rule("Dropout")
def dropout(analysis: Analysis, node: ir.Node) -> None:
    """The identity when a model is used; its mask is then true everywhere."""
    training = optional(node, 2)
    if training is not None and not zero(analysis, training):
        analysis.opaque(node, f"{label(node)} is in training mode")
        return
    _unary(Freedom.PERMUTATION if is_read(node, 1) else Freedom.GENERAL)(analysis, node)


#: Types so fine that a basis change before the cast is one after it, but for rounding.
_WIDE = (ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@rule("Cast", "CastLike")
def cast(analysis: Analysis, node: ir.Node) -> None:
    """Between wide floating-point types: the identity. To another type: rounds each element."""
    made = node.outputs[0].dtype
    exact = operand(node, 0).dtype in _WIDE and (made is None or made in _WIDE)
    _unary(Freedom.GENERAL if exact else Freedom.PERMUTATION)(analysis, node)


def aligned(analysis: Analysis, values: Sequence[ir.Value | None]) -> list[list[Ref]]:
    """For each axis of the broadcast result, the operands' axes there (a missing one is of size one)."""
    known = [analysis.refs(value) for value in values]
    rank = max(len(refs) for refs in known)
    padded = [[analysis.axes.one] * (rank - len(refs)) + refs for refs in known]
    return [list(column) for column in zip(*padded, strict=True)]


def equal_numbers(analysis: Analysis, value: ir.Value, reason: str) -> bool:
    """Whether a value is a constant of equal numbers; if so, keeps it one."""
    if not analysis.uniform(value):
        return False
    for ref in analysis.refs(value):
        analysis.axes.constrain(ref, Freedom.ORTHOGONAL_ONES, reason)
    return True


def is_one(analysis: Analysis, ref: Ref) -> bool:
    """Whether an axis is broadcast: of size one."""
    return analysis.axes.size(ref) == 1


@rule("Add", "Sub", "Sum", "Mean")
def add(analysis: Analysis, node: ir.Node) -> None:
    """T a + T b = T (a + b). One number added along the whole axis stays put only if T·1 = 1."""
    axes, out = analysis.axes, []
    for column in aligned(analysis, node.inputs):
        full = [ref for ref in column if not is_one(analysis, ref)]
        for ref in full[1:]:
            axes.unify(full[0], ref, f"{label(node)} adds them")
        for value, ref in zip(node.inputs, column, strict=True):
            if full and is_one(analysis, ref) and not zero(analysis, value):
                axes.constrain(full[0], Freedom.ORTHOGONAL_ONES, f"{label(node)} adds one number along the axis")
        out.append(full[0] if full else axes.one)
    analysis.set(node.outputs[0], out)


def zero(analysis: Analysis, value: ir.Value | None) -> bool:
    """Whether a value is a small constant of zeros."""
    array = analysis.constant(value)
    return array is not None and not array.any()


@rule("Mul")
def multiply(analysis: Analysis, node: ir.Node) -> None:
    """A number per row commutes with everything; a product along the axis is a gate."""
    found = None if analysis.join_norms else _constant_scale(analysis, node)
    analysis.set(node.outputs[0], found or product_of(analysis, node, *operands(node)))


def _constant_scale(analysis: Analysis, node: ir.Node) -> list[Ref] | None:
    """The result's axes if the node scales one axis by constants that a pass may fold: that axis starts anew."""
    left, right = operands(node)
    for value, scale in ((left, right), (right, left)):
        refs = analysis.refs(value)
        if value.const_value is not None or scale.const_value is None or analysis.uniform(scale):
            continue
        sizes = [analysis.axes.size(ref) for ref in analysis.refs(scale)]
        wide = [i - len(sizes) for i, size in enumerate(sizes) if size != 1]
        if len(wide) == 1 and len(sizes) <= len(refs) and analysis.axes.size(refs[wide[0]]) == sizes[wide[0]]:
            out = list(refs)
            out[wide[0]] = analysis.axes.fresh(sizes[wide[0]])
            analysis.scalings.append(Scaling(node, value, refs[wide[0]], out[wide[0]], scale))
            return out
    return None


@rule("Div")
def divide(analysis: Analysis, node: ir.Node) -> None:
    """The numerator is linear; along the denominator's own axes only permutations survive."""
    numerator, denominator = operands(node)
    number = equal_numbers(analysis, denominator, f"{label(node)} divides by one number")
    out = []
    for top, bottom in aligned(analysis, [numerator, denominator]):
        if is_one(analysis, bottom) or number:
            out.append(top if not is_one(analysis, top) else bottom)
        elif is_one(analysis, top):
            analysis.axes.constrain(bottom, Freedom.SIGNED_PERMUTATION, f"{label(node)} divides by it")
            out.append(bottom)
        else:
            out.append(carry(analysis, top, bottom, label(node)))
    analysis.set(node.outputs[0], out)


def product_of(analysis: Analysis, node: ir.Node, a: ir.Value, b: ir.Value) -> list[Ref]:
    """The axes of a broadcast product, joined as the product requires."""
    number_a, number_b = (equal_numbers(analysis, v, f"{label(node)} multiplies by one number") for v in (a, b))
    out = []
    for left, right in aligned(analysis, [a, b]):
        if is_one(analysis, left) or is_one(analysis, right):
            out.append(right if is_one(analysis, left) else left)
        elif number_a or number_b:
            out.append(right if number_a else left)
        else:
            out.append(gate(analysis, left, right, label(node)))
    return out


def gate(analysis: Analysis, left: Ref, right: Ref, reason: str) -> Ref:
    """Join the two sides of an elementwise product: P on both, a diagonal through the side that can carry it."""
    swap = Freedom.DIAGONAL not in analysis.free(left) and Freedom.DIAGONAL in analysis.free(right)
    return carry(analysis, right, left, reason) if swap else carry(analysis, left, right, reason)


def carry(analysis: Analysis, carrier: Ref, other: Ref, reason: str) -> Ref:
    analysis.axes.unify(other, carrier.through(Mode.PLAIN), f"{reason} multiplies along the axis")
    return carrier


@rule("SwiGLU")
def gated_unit(analysis: Analysis, node: ir.Node) -> None:
    """``swish(a) · b``: linear in the second operand only."""
    nonlinear, linear = (analysis.refs(value) for value in node.inputs)
    out = []
    for left, right in zip(nonlinear, linear, strict=True):
        out.append(right if is_one(analysis, right) else carry(analysis, right, left, label(node)))
    analysis.set(node.outputs[0], out)


@rule("And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Greater", "GreaterOrEqual", "Less",
      "LessOrEqual", "Mod", "Or", "Pow", "Xor")  # fmt: skip
def together(analysis: Analysis, node: ir.Node) -> None:
    """Any function of the elements at one place: both sides may only be permuted alike."""
    out = []
    for column in aligned(analysis, node.inputs):
        full = [ref for ref in column if not is_one(analysis, ref)]
        for ref in full:
            analysis.axes.constrain(ref, Freedom.PERMUTATION, f"{label(node)} acts on each element")
            analysis.axes.unify(ref, full[0], label(node))
        out.append(full[0] if full else analysis.axes.one)
    analysis.set(node.outputs[0], out)


@rule("Max", "Min")
def extreme(analysis: Analysis, node: ir.Node) -> None:
    """max(Da, Db) = D max(a, b) for positive D; a number other than zero along the axis fixes its scale."""
    out = []
    for column in aligned(analysis, node.inputs):
        full = [ref for ref in column if not is_one(analysis, ref)]
        fixed = any(is_one(analysis, ref) and not zero(analysis, v) for v, ref in zip(node.inputs, column, strict=True))
        for ref in full:
            group = Freedom.PERMUTATION if fixed else Freedom.POSITIVE_MONOMIAL
            analysis.axes.constrain(ref, group, f"{label(node)} acts on each element")
            analysis.axes.unify(full[0], ref, label(node))
        out.append(full[0] if full else analysis.axes.one)
    analysis.set(node.outputs[0], out)


@rule("Clip")
def clip(analysis: Analysis, node: ir.Node) -> None:
    """Clipping below at zero alone is a ReLU."""
    ends = sum(v is not None for v in node.inputs[1:]) + len(node.attributes)
    positive = ends == 1 and zero(analysis, optional(node, 1))
    _unary(Freedom.POSITIVE_MONOMIAL if positive else Freedom.PERMUTATION)(analysis, node)


@rule("PRelu")
def slope(analysis: Analysis, node: ir.Node) -> None:
    """A ReLU whose other side has a slope for each element."""
    out = []
    for ref, other in aligned(analysis, node.inputs):
        analysis.axes.constrain(ref, Freedom.POSITIVE_MONOMIAL, f"{label(node)} acts on each element")
        out.append(ref if is_one(analysis, other) else carry(analysis, ref, other, label(node)))
    analysis.set(node.outputs[0], out)


@rule("Where")
def where(analysis: Analysis, node: ir.Node) -> None:
    """A choice per row commutes with everything; a choice per element with permutations."""
    condition, *branches = node.inputs
    out = []
    for chosen, *column in aligned(analysis, node.inputs):
        full = [ref for ref in column if not is_one(analysis, ref)]
        for ref in full[1:]:
            analysis.axes.unify(full[0], ref, f"{label(node)} chooses between them")
        for value, ref in zip(branches, column, strict=True):
            if full and is_one(analysis, ref) and not zero(analysis, value):
                reason = f"{label(node)} may put one number along the axis"
                analysis.axes.constrain(full[0], Freedom.ORTHOGONAL_ONES, reason)
        if not is_one(analysis, chosen):
            for ref in full:
                analysis.axes.unify(chosen, ref.through(Mode.PLAIN), label(node))
            full = full or [chosen]
        out.append(full[0] if full else analysis.axes.one)
    analysis.set(node.outputs[0], out)
