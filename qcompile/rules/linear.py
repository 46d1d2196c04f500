"""Linear operators: products of two tensors, convolutions, lookups."""

from __future__ import annotations

import string
from collections.abc import Sequence

import onnx_ir as ir

from qcompile.axes import Mode, Ref
from qcompile.freedom import Freedom
from qcompile.rules.elementwise import gate, is_one
from qcompile.spaces import Analysis, Site, is_float, label, rule, static

__all__ = ["add_channel_bias", "add_site", "contract", "is_weight", "weight_of"]


def is_weight(value: ir.Value | None) -> bool:
    """Whether a value is a constant matrix (or a stack of them) of floating-point numbers."""
    if value is None or value.const_value is None or not is_float(value):
        return False
    return sum(int(dim) > 1 for dim in value.shape) >= 2


def weight_of(value: ir.Value | None) -> ir.Value | None:
    """The constant that a value is, or that it is looked up in: the matrix of each token's expert, out of a stack."""
    if value is None or is_weight(value):
        return value
    node = value.producer()
    if node is None or node.domain or not is_weight(node.inputs[0]) or len(node.inputs[0].shape) < 3:
        return None
    by_rows = node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0
    indices = node.inputs[1].shape if node.op_type == "GatherND" else None
    deep = indices is not None and indices[-1] == 1 and not node.attributes.get_int("batch_dims", 0)
    return node.inputs[0] if by_rows or deep else None


def add_site(
    analysis: Analysis, node: ir.Node, weight: ir.Value, other: ir.Value, axes: tuple[int, int], refs: tuple[Ref, Ref]
) -> None:
    """Record a product of an activation with a constant, or with what is looked up in one.

    Args:
        axes: of ``weight``, those that are contracted and written.
        refs: the axis of ``other`` that is contracted, and the axis of the output.
    """
    source = weight_of(weight)
    if source is None or other.const_value is not None:
        return
    shift = len(analysis.refs(weight)) - len(source.shape)
    if min(axes) > shift or weight is source:  # beyond what is looked up
        analysis.sites.append(Site(node, source, other, axes[0] - shift, axes[1] - shift, *refs))


def contract(analysis: Analysis, a: Ref, b: Ref, reason: str) -> None:
    """Σ aᵢ bᵢ is kept by T on one side and T⁻ᵀ on the other."""
    analysis.axes.unify(a, b.through(Mode.DUAL), f"{reason} contracts them")


def batch(analysis: Analysis, a: list[Ref], b: list[Ref], reason: str) -> list[Ref]:
    """The broadcast leading axes of a batched product."""
    rank = max(len(a), len(b))
    a = [analysis.axes.one] * (rank - len(a)) + a
    b = [analysis.axes.one] * (rank - len(b)) + b
    out = []
    for left, right in zip(a, b, strict=True):
        if is_one(analysis, left) or is_one(analysis, right):
            out.append(right if is_one(analysis, left) else left)
        else:
            out.append(gate(analysis, left, right, reason))
    return out


@rule("MatMul")
@rule("FusedMatMul", domain="com.microsoft")
def matmul(analysis: Analysis, node: ir.Node) -> None:
    """Rows and columns are linear, the contracted axes carry T and T⁻ᵀ."""
    left, right = (list(analysis.refs(value)) for value in node.inputs[:2])
    flip_left, flip_right = (node.attributes.get_int(name, 0) for name in ("transA", "transB"))
    if node.attributes.get_int("transBatchA", 0) or node.attributes.get_int("transBatchB", 0):
        analysis.opaque(node, f"{label(node)} transposes its batch")
        return
    if flip_left and len(left) > 1:
        left[-2:] = left[:-3:-1]
    if flip_right and len(right) > 1:
        right[-2:] = right[:-3:-1]
    contract(analysis, left[-1], right[-2] if len(right) > 1 else right[0], label(node))
    out = batch(analysis, left[:-2], right[:-2], label(node))
    out += left[-2:-1] + (right[-1:] if len(right) > 1 else [])
    analysis.set(node.outputs[0], out)
    a, b = node.inputs[:2]
    if weight_of(b) is not None and len(right) > 1:
        axes = (len(right) - 1, len(right) - 2)
        add_site(analysis, node, b, a, axes if flip_right else axes[::-1], (left[-1], out[-1]))
    elif weight_of(a) is not None and len(right) > 1:
        axes = (len(left) - 2, len(left) - 1)
        add_site(analysis, node, a, b, axes if flip_left else axes[::-1], (right[-2], out[-2]))


@rule("Gemm")
def gemm(analysis: Analysis, node: ir.Node) -> None:
    """``alpha · A B + beta · C`` with either factor transposed."""
    left, right = (list(analysis.refs(value)) for value in node.inputs[:2])
    flip_right = node.attributes.get_int("transB", 0)
    if node.attributes.get_int("transA", 0):
        left.reverse()
    if flip_right:
        right.reverse()
    contract(analysis, left[1], right[0], label(node))
    out = [left[0], right[1]]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        _add_bias(analysis, node, out)
    analysis.set(node.outputs[0], out)
    if is_weight(node.inputs[1]) and node.inputs[0].const_value is None:
        axis_in, axis_out = (1, 0) if flip_right else (0, 1)
        analysis.sites.append(Site(node, node.inputs[1], node.inputs[0], axis_in, axis_out, left[1], out[1]))


def _add_bias(analysis: Analysis, node: ir.Node, out: list[Ref]) -> None:
    bias = analysis.refs(node.inputs[2])
    for ref, own in zip(reversed(out), reversed([analysis.axes.one] * (2 - len(bias)) + bias), strict=True):
        if not is_one(analysis, own):
            analysis.axes.unify(ref, own, f"{label(node)} adds its bias")
        elif not is_one(analysis, ref):
            analysis.axes.constrain(ref, Freedom.ORTHOGONAL_ONES, f"{label(node)} adds one number along the axis")


@rule("Conv", "ConvTranspose")
def conv(analysis: Analysis, node: ir.Node) -> None:
    """Channels are linear (one channel alone if depthwise); places are fixed unless the kernel is 1."""
    x, weight = (analysis.refs(value) for value in node.inputs[:2])
    groups = node.attributes.get_int("group", 1)
    read, write = (0, 1) if node.op_type == "ConvTranspose" else (1, 0)
    if groups == 1:
        contract(analysis, x[1], weight[read], label(node))
        channels = weight[write]
        if is_weight(node.inputs[1]):
            analysis.sites.append(Site(node, node.inputs[1], node.inputs[0], read, write, x[1], channels))
    else:
        channels = _grouped(analysis, node, x[1], weight, groups, read)
    if channels is None:
        analysis.opaque(node, f"{label(node)} has groups that cannot be followed")
        return
    places = _places(analysis, node, x[2:], weight[2:])
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        add_channel_bias(analysis, node, channels, analysis.refs(node.inputs[2])[0], [x[0], *places])
    analysis.set(node.outputs[0], [x[0], channels, *places])


def add_channel_bias(analysis: Analysis, node: ir.Node, channels: Ref, bias: Ref, others: Sequence[Ref]) -> None:
    """A bias per channel is one number along every other axis."""
    analysis.axes.unify(channels, bias, f"{label(node)} adds its bias")
    for ref in others:
        analysis.axes.constrain(ref, Freedom.ORTHOGONAL_ONES, f"{label(node)} adds one number along the axis")


def _grouped(analysis: Analysis, node: ir.Node, x: Ref, weight: list[Ref], groups: int, read: int) -> Ref | None:
    axes, reason = analysis.axes, label(node)
    if None in (axes.size(x), axes.size(weight[0]), axes.size(weight[1])):
        return None
    inner = axes.size(x) // groups
    if read == 0:  # ConvTranspose stores [in, out / groups]
        inside = axes.as_product(weight[0], [groups, inner], reason)
        outside = [None, weight[1]]
    else:
        outer = axes.size(weight[0]) // groups
        outside = axes.as_product(weight[0], [groups, outer], reason)
        inside = [None, weight[1]]
    group, part = axes.as_product(x, [groups, inner], reason) or (None, None)
    if group is None or inside is None or outside is None:
        return None
    contract(analysis, part, inside[1], reason)
    return axes.product([gate(analysis, group, outside[0] or inside[0], reason), outside[1]])


def _places(analysis: Analysis, node: ir.Node, x: list[Ref], kernel: list[Ref]) -> list[Ref]:
    strides = node.attributes.get_ints("strides", [1] * len(x))
    pads = node.attributes.get_ints("pads", [0] * 2 * len(x))
    shape = node.outputs[0].shape
    out = []
    for i, ref in enumerate(x):
        analysis.axes.constrain(kernel[i], Freedom.NONE, f"{label(node)} reads it by place")
        if analysis.axes.size(kernel[i]) == 1 and strides[i] == 1 and not pads[i] and not pads[i + len(x)]:
            out.append(ref)
            continue
        analysis.axes.constrain(ref, Freedom.NONE, f"{label(node)} slides over it")
        size = static(shape[2 + i]) if shape is not None else _length(analysis, node, i, ref, kernel[i])
        out.append(analysis.axes.frozen(size, f"{label(node)} slides over it"))
    return out


def _length(analysis: Analysis, node: ir.Node, place: int, ref: Ref, kernel: Ref) -> int | None:
    """The places of a convolution, for operators whose result the graph does not state."""
    size, width = analysis.axes.size(ref), analysis.axes.size(kernel)
    if None in (size, width) or node.op_type == "ConvTranspose" or "auto_pad" in node.attributes:
        return None
    get = node.attributes.get_ints
    pads = list(get("pads", []))
    around = pads[place] + pads[place + len(pads) // 2] if pads else 0
    stride, dilation = (list(get(name, []) or [1] * (place + 1))[place] for name in ("strides", "dilations"))
    return (size + around - dilation * (width - 1) - 1) // stride + 1


@rule("DeformConv")
def deformable(analysis: Analysis, node: ir.Node) -> None:
    """A convolution that reads at places of its own for each output: channels are linear where there are no groups."""
    attributes = node.attributes
    x, weight, offset = (analysis.refs(value) for value in node.inputs[:3])
    if attributes.get_int("group", 1) > 1 or attributes.get_int("offset_group", 1) > 1:
        analysis.opaque(node, f"{label(node)} has groups")
        return
    contract(analysis, x[1], weight[1], label(node))
    for ref in [*x[2:], *weight[2:]]:
        analysis.axes.constrain(ref, Freedom.NONE, f"{label(node)} reads it by place")
    analysis.axes.constrain(x[0], Freedom.DIAGONAL, f"{label(node)} has places for each sample")
    analysis.freeze([node.inputs[2], *node.inputs[4:]], f"{label(node)} places its kernel by it")
    places = [analysis.axes.frozen(analysis.axes.size(ref), f"{label(node)} slides over it") for ref in offset[2:]]
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        add_channel_bias(analysis, node, weight[0], analysis.refs(node.inputs[3])[0], x[:1])
    analysis.set(node.outputs[0], [x[0], weight[0], *places])


@rule("Gather")
def gather(analysis: Analysis, node: ir.Node) -> None:
    """A lookup: the axis that is indexed stays as it is, the others pass through."""
    data, indices = node.inputs
    refs = analysis.refs(data)
    axis = node.attributes.get_int("axis", 0) % len(refs)
    analysis.axes.constrain(refs[axis], Freedom.NONE, f"{label(node)} indexes it")
    analysis.set(node.outputs[0], [*refs[:axis], *analysis.refs(indices), *refs[axis + 1 :]])
    if is_weight(data) and indices.const_value is None and len(refs) == 2:
        analysis.sites.append(Site(node, data, None, axis, 1 - axis, None, refs[1 - axis]))
    known, picked = analysis.dims_of.get(data), analysis.constant(indices)
    if known is not None and picked is not None:
        analysis.dims_of[node.outputs[0]] = [known[int(i)] for i in picked.reshape(-1)]


@rule("Einsum")
def einsum(analysis: Analysis, node: ir.Node) -> None:
    """Letters in the result pass through; letters that are summed carry T and T⁻ᵀ."""
    refs = [analysis.refs(value) for value in node.inputs]
    terms, output = _letters(node.attributes.get_string("equation").replace(" ", ""), [len(item) for item in refs])
    operands = [_by_letter(analysis, node, term, item) for term, item in zip(terms, refs, strict=True)]
    merged: dict[str, Ref] = {}
    for letter in sorted({letter for term in terms for letter in term}):
        found = [operand[letter] for operand in operands if letter in operand]
        wide = [ref for ref in found if not is_one(analysis, ref)] or found[:1]
        merged[letter] = _merge(analysis, node, wide, letter not in output)
    analysis.set(node.outputs[0], [merged[letter] for letter in output])
    if all(len(set(term)) == len(term) for term in terms):
        _einsum_site(analysis, node, terms, output, operands)


def _by_letter(analysis: Analysis, node: ir.Node, term: str, refs: Sequence[Ref]) -> dict[str, Ref]:
    """An operand's axes by letter; a letter that occurs twice takes a diagonal."""
    operand: dict[str, Ref] = {}
    for letter, ref in zip(term, refs, strict=True):
        operand[letter] = gate(analysis, operand[letter], ref, label(node)) if letter in operand else ref
    return operand


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The operands' and the result's axes as letters: dots spelled out, the result's letters if they are left out."""
    inputs, arrow, output = equation.partition("->")
    given = inputs.split(",")
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    dots = [rank - len(term) + 3 if "..." in term else 0 for term, rank in zip(given, ranks, strict=True)]
    names = spare[: max(dots)]
    terms = [term.replace("...", "".join(names[len(names) - n :])) for term, n in zip(given, dots, strict=True)]
    if not arrow:
        once = sorted(letter for letter in set(inputs) if letter.isalpha() and inputs.count(letter) == 1)
        output = "..." + "".join(once)
    return terms, output.replace("...", "".join(names))


def _merge(analysis: Analysis, node: ir.Node, found: Sequence[Ref], summed: bool) -> Ref:
    """One letter: the product of all operands along it, or the sum of that product."""
    if summed and len(found) == 1:
        analysis.axes.constrain(found[0], Freedom.ORTHOGONAL_ONES, f"{label(node)} sums over it")
    *others, last = found if summed and len(found) > 1 else [*found, None]
    merged = others[0]
    for ref in others[1:]:
        merged = gate(analysis, merged, ref, label(node))
    if last is not None:
        contract(analysis, merged, last, label(node))
    return merged


def _einsum_site(analysis: Analysis, node: ir.Node, terms: list[str], output: str, operands: list[dict]) -> None:
    """A weight may stack matrices along further letters; the last letters are the features."""
    for i, (weight, other) in enumerate(zip(node.inputs, reversed(node.inputs), strict=True)):
        source = weight_of(weight) if len(terms) == 2 else None
        if source is None or other.const_value is not None:
            continue
        own = terms[i][len(terms[i]) - len(source.shape) + (weight is not source) :]
        summed = [c for c in own if c not in output and c in terms[1 - i]]
        written = [c for c in own if c in output and c not in terms[1 - i]]
        if summed and written:
            axes = terms[i].index(summed[-1]), terms[i].index(written[-1])
            refs = operands[1 - i][summed[-1]], operands[i][written[-1]]
            add_site(analysis, node, weight, other, axes, refs)
            return
