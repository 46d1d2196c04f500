"""Operators that move elements or add them up, without changing them one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from qcompile.analysis.axes import Mode, Ref, complete
from qcompile.analysis.rules.elementwise import zero
from qcompile.analysis.rules.sizes import Dim, dims, size_of, take
from qcompile.analysis.spaces import Analysis, rule
from qcompile.ir.graph import label, static
from qcompile.ir.required import optional
from qcompile.transforms.freedom import Freedom

__all__ = ["reshape_axes"]


@rule("Shape")
def shape(analysis: Analysis, node: ir.Node) -> None:
    """The sizes of axes; ``sizes`` remembers which axis each entry stands for."""
    refs = analysis.refs(node.inputs[0])
    found = refs[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(refs))]
    analysis.set(node.outputs[0], [analysis.axes.frozen(len(found), "a shape")])


# -- views -------------------------------------------------------------------------------------------------------


@rule("Reshape")
def reshape(analysis: Analysis, node: ir.Node) -> None:
    """Split and merge axes; what cannot be followed loses its freedom."""
    source = analysis.refs(node.inputs[0])
    target = dims(analysis, node.inputs[1])
    stated = node.outputs[0].shape
    if target is None:
        if stated is None:
            analysis.opaque(node, f"{label(node)} has a shape that is computed at run time")
            return
        target = [None] * len(stated)
    if stated is not None and len(stated) == len(target):
        target = [static(s) or dim if dim in (None, -1) else dim for dim, s in zip(target, stated, strict=True)]
    keep_zero = bool(node.attributes.get_int("allowzero", 0))
    target = [
        size_of(analysis, source[i]) if dim == 0 and not keep_zero and i < len(source) else dim
        for i, dim in enumerate(target)
    ]
    analysis.set(node.outputs[0], reshape_axes(analysis, source, _solve(analysis, source, target), label(node)))


def _solve(analysis: Analysis, source: Sequence[Ref], target: list[Dim]) -> list[Dim]:
    """Replace -1 by its value where all sizes are static, by "unknown" otherwise."""
    if -1 not in target:
        return target
    total = complete(analysis.axes.size(ref) for ref in source)
    rest = _numbers([dim for dim in target if dim != -1])
    others = 0 if rest is None else math.prod(rest)
    missing = math.prod(total) // others if total is not None and others else None
    return [missing if dim == -1 else dim for dim in target]


def reshape_axes(analysis: Analysis, source: Sequence[Ref], target: Sequence[Dim], reason: str) -> list[Ref]:
    """The axes after a row-major reshape.

    Axes are matched from both ends; what remains in the middle is matched if it must be one axis.
    """
    axes = analysis.axes
    factors = [factor for ref in source for factor in axes.factors(ref)]
    left: list[Ref] = []
    right: list[Ref] = []
    target = list(target)
    while target and (taken := _take(analysis, factors, target[-1], back=True, reason=reason)) is not None:
        right.insert(0, axes.product(taken))
        target.pop()
    while target and (taken := _take(analysis, factors, target[0], back=False, reason=reason)) is not None:
        left.append(axes.product(taken))
        target.pop(0)
    return left + _middle(analysis, factors, target, reason) + right


def _take(analysis: Analysis, factors: list[Ref], dim: Dim, *, back: bool, reason: str) -> list[Ref] | None:
    axes = analysis.axes
    if dim == 1:
        return []
    if dim is None or dim == 0:
        return None
    trial = list(factors)
    if isinstance(dim, Ref):
        taken = take(analysis, trial, dim, back=back, reason=reason)
    else:
        taken = (axes.take_back if back else axes.take_front)(trial, dim, reason)
    if taken is not None:
        factors[:] = trial
    return taken


def _middle(analysis: Analysis, factors: list[Ref], target: list[Dim], reason: str) -> list[Ref]:
    axes = analysis.axes
    if len(target) == 1:  # everything else is matched, so this axis is what is left
        return [axes.product(factors)]
    for ref in factors:
        axes.constrain(ref, Freedom.NONE, f"{reason} mixes it with axes that cannot be followed")
    return [dim if isinstance(dim, Ref) else axes.frozen(dim, f"{reason} makes it from several axes") for dim in target]


@rule("Flatten")
def flatten(analysis: Analysis, node: ir.Node) -> None:
    """Merge the axes before and after one place."""
    refs = analysis.refs(node.inputs[0])
    axis = node.attributes.get_int("axis", 1) % (len(refs) + 1)
    analysis.set(node.outputs[0], [analysis.axes.product(refs[:axis]), analysis.axes.product(refs[axis:])])


@rule("Transpose")
def transpose(analysis: Analysis, node: ir.Node) -> None:
    """Reorder the axes."""
    refs = analysis.refs(node.inputs[0])
    order = node.attributes.get_ints("perm", list(reversed(range(len(refs)))))
    analysis.set(node.outputs[0], [refs[i] for i in order])


@rule("Unsqueeze", "Squeeze")
def squeeze(analysis: Analysis, node: ir.Node) -> None:
    """Add or remove axes of size one."""
    refs = list(analysis.refs(node.inputs[0]))
    positions = _ints(analysis, node, 1, "axes")
    if node.op_type == "Unsqueeze" and positions is not None:
        rank = len(refs) + len(positions)
        for position in sorted(p % rank for p in positions):
            refs.insert(position, analysis.axes.one)
    elif node.op_type == "Squeeze":
        gone = {p % len(refs) for p in positions} if refs and positions is not None else _ones(analysis, refs)
        refs = [ref for i, ref in enumerate(refs) if i not in gone]
    else:
        analysis.opaque(node, f"{label(node)} has axes that are computed at run time")
        return
    analysis.set(node.outputs[0], refs)


def _ones(analysis: Analysis, refs: Sequence[Ref]) -> set[int]:
    return {i for i, ref in enumerate(refs) if analysis.axes.size(ref) == 1}


def _ints(analysis: Analysis, node: ir.Node, index: int, attribute: str) -> list[int] | None:
    """A list of integers, from an attribute (older opsets) or a constant input."""
    if attribute in node.attributes:
        return list(node.attributes.get_ints(attribute))
    value = optional(node, index)
    known = None if value is None else dims(analysis, value)
    return None if known is None else _numbers(known)


def _numbers(dims: Sequence[Dim]) -> list[int] | None:
    """Sizes that are all numbers."""
    found = [dim for dim in dims if isinstance(dim, int)]
    return found if len(found) == len(dims) else None


# -- selecting and joining ---------------------------------------------------------------------------------------


@rule("Concat")
def concat(analysis: Analysis, node: ir.Node) -> None:
    """Along the axis: a direct sum. Along the others: all alike."""
    operands = [analysis.refs(value) for value in node.inputs]
    axis = node.attributes.get_int("axis") % len(operands[0])
    out = []
    for i, column in enumerate(zip(*operands, strict=True)):
        if i == axis:
            out.append(analysis.axes.concat(list(column)))
        else:
            for ref in column[1:]:
                analysis.axes.unify(column[0], ref, f"{label(node)} joins them")
            out.append(column[0])
    analysis.set(node.outputs[0], out)


@rule("Split")
def split(analysis: Analysis, node: ir.Node) -> None:
    """The axis becomes a direct sum of its parts."""
    refs = analysis.refs(node.inputs[0])
    axis = node.attributes.get_int("axis", 0) % len(refs)
    size = analysis.axes.size(refs[axis])
    sizes = _ints(analysis, node, 1, "split")
    if sizes is None and size is not None and optional(node, 1) is None:
        chunk = -(-size // len(node.outputs))
        sizes = [min(chunk, size - i * chunk) for i in range(len(node.outputs))]
    parts = None if sizes is None or size is None else analysis.axes.as_sum(refs[axis], sizes, label(node))
    if parts is None:
        analysis.axes.constrain(refs[axis], Freedom.NONE, f"{label(node)} cuts it where it cannot be followed")
        lengths: Sequence[int | None] = sizes or [None] * len(node.outputs)
        parts = [analysis.axes.frozen(n, label(node)) for n in lengths]
    for output, part in zip(node.outputs, parts, strict=True):
        analysis.set(output, [*refs[:axis], part, *refs[axis + 1 :]])


@rule("Slice")
def slice_(analysis: Analysis, node: ir.Node) -> None:
    """A run of consecutive elements is a segment; every k-th element is one part of a product."""
    refs = list(analysis.refs(node.inputs[0]))
    starts, ends = _ints(analysis, node, 1, "starts"), _ints(analysis, node, 2, "ends")
    places = _ints(analysis, node, 3, "axes")
    steps = _ints(analysis, node, 4, "steps")
    given = [value is not None for value in node.inputs]
    if places is None and not any(given[3:4]):
        places = list(range(len(starts or ends or [])))
    if not places:
        analysis.opaque(node, f"{label(node)} has bounds that are computed at run time")
        return
    bounds = None
    if starts is not None and ends is not None and not (steps is None and any(given[4:])):
        bounds = list(zip(starts, ends, steps or [1] * len(starts), strict=False))
    for i, place in enumerate(places):
        refs[place] = _sliced(analysis, node, refs[place], None if bounds is None else bounds[i], place % len(refs))
    analysis.set(node.outputs[0], refs)


def _sliced(analysis: Analysis, node: ir.Node, ref: Ref, bounds: tuple[int, int, int] | None, place: int) -> Ref:
    size = analysis.axes.size(ref)
    if bounds is not None and bounds[0] == 0 and bounds[1] >= 2**31 - 1 and bounds[2] == 1:
        return ref
    if size is None or bounds is None:
        analysis.axes.constrain(ref, Freedom.NONE, f"{label(node)} cuts it at run time")
        shape = node.outputs[0].shape
        return analysis.axes.frozen(static(shape[place]) if shape is not None else None, label(node))
    start, end, step = slice(*bounds).indices(size)
    if step == 1:
        return _segment(analysis, ref, size, start, max(start, end), label(node))
    if step > 1 and size % step == 0 and start < step and end > size - step:
        return _strided(analysis, ref, size // step, start, step, label(node))
    analysis.axes.constrain(ref, Freedom.NONE, f"{label(node)} takes every {step}-th element")
    return analysis.axes.frozen(len(range(start, end, step)), label(node))


def _segment(analysis: Analysis, ref: Ref, size: int, start: int, end: int, reason: str) -> Ref:
    axes = analysis.axes
    lengths = [n for n in (start, end - start, size - end) if n]
    if end == start:
        return axes.frozen(0, f"{reason} takes nothing")
    parts = axes.as_sum(ref, lengths, reason)
    if parts is not None:
        return parts[1 if start else 0]
    axes.constrain(ref, Freedom.NONE, f"{reason} cuts it where it cannot be followed")
    return axes.frozen(end - start, reason)


def _strided(analysis: Analysis, ref: Ref, count: int, start: int, step: int, reason: str) -> Ref:
    parts = analysis.axes.as_product(ref, [count, step], reason)
    if parts is None:
        analysis.axes.constrain(ref, Freedom.NONE, f"{reason} takes every {step}-th element")
        return analysis.axes.frozen(count, reason)
    analysis.axes.constrain(parts[1], Freedom.NONE, f"{reason} takes element {start} of every {step}")
    return parts[0]


@rule("Expand", "Tile")
def expand(analysis: Analysis, node: ir.Node) -> None:
    """Copies along an axis are all alike: what acts there must keep the vector of ones."""
    refs = analysis.refs(node.inputs[0])
    stated = node.outputs[0].shape
    target = dims(analysis, node.inputs[1])
    if node.op_type == "Tile" and target is not None and len(target) != len(refs):
        analysis.opaque(node, f"{label(node)} has {len(target)} repeats for {len(refs)} axes")
        return
    if node.op_type == "Tile" and target is not None:
        sizes = [analysis.axes.size(ref) for ref in refs]
        target = [
            ref if repeat == 1 else (size * repeat if size and isinstance(repeat, int) else None)
            for ref, size, repeat in zip(refs, sizes, target, strict=True)
        ]
    if target is None and node.op_type == "Expand" and stated is not None:
        target = [static(dim) for dim in stated]
    if target is None:
        analysis.opaque(node, f"{label(node)} has a shape that is computed at run time")
        return
    padded = [analysis.axes.one] * (len(target) - len(refs)) + list(refs)
    wanted: list[Dim] = [*[1] * (len(padded) - len(target)), *target]
    known = [static(dim) for dim in stated] if stated is not None else [None] * len(wanted)
    out = [_expanded(analysis, node, *item) for item in zip(padded, wanted, known, strict=True)]
    analysis.set(node.outputs[0], out)


def _expanded(analysis: Analysis, node: ir.Node, ref: Ref, dim: Dim, stated: int | None) -> Ref:
    axes, size = analysis.axes, analysis.axes.size(ref)
    if dim in (1, -1) or (isinstance(dim, int) and dim == size) or (isinstance(dim, Ref) and axes.same(dim, ref)):
        return ref
    if size == 1:
        made = dim if isinstance(dim, Ref) else axes.fresh(dim if dim is not None else stated)
        axes.constrain(made, Freedom.ORTHOGONAL_ONES, f"{label(node)} repeats one element along the axis")
        return made
    if node.op_type == "Tile" and size and isinstance(dim, int):
        copies = axes.fresh(dim // size)
        axes.constrain(copies, Freedom.ORTHOGONAL_ONES, f"{label(node)} repeats the axis")
        return axes.product([copies, ref])
    if node.op_type == "Expand":
        return ref
    axes.constrain(ref, Freedom.NONE, f"{label(node)} repeats it at run time")
    return axes.frozen(stated, f"{label(node)} repeats it at run time")


@rule("Pad")
def pad(analysis: Analysis, node: ir.Node) -> None:
    """Axes that are not padded pass through; padded ones get a new end."""
    refs = list(analysis.refs(node.inputs[0]))
    pads = _ints(analysis, node, 1, "pads")
    stated = node.outputs[0].shape
    places = _ints(analysis, node, 3, "axes")
    if places is None and optional(node, 3) is None:
        places = list(range(len(refs)))
    if pads is None or places is None:
        analysis.opaque(node, f"{label(node)} has a width that is computed at run time")
        return
    constant = node.attributes.get_string("mode", "constant") == "constant"
    value = optional(node, 2)
    zeros = (value is None or zero(analysis, value)) and not node.attributes.get_float("value", 0.0)
    for i, place in enumerate(places):
        if pads[i] or pads[i + len(places)]:
            analysis.axes.constrain(refs[place], Freedom.NONE, f"{label(node)} lengthens it")
            size = static(stated[place]) if stated is not None else None
            refs[place] = analysis.axes.frozen(size, f"{label(node)} lengthens it")
        elif constant and not zeros:
            analysis.axes.constrain(refs[place], Freedom.ORTHOGONAL_ONES, f"{label(node)} puts one number along it")
    analysis.set(node.outputs[0], refs)


@rule("CenterCropPad")
def center(analysis: Analysis, node: ir.Node) -> None:
    """Axes of the same length pass through; the others lose an end or get one of zeros."""
    refs = list(analysis.refs(node.inputs[0]))
    places = node.attributes.get_ints("axes", list(range(len(refs))))
    wanted = dims(analysis, node.inputs[1]) or [None] * len(places)
    for place, want in zip(places, wanted, strict=True):
        if not _same_length(analysis, refs[place], want):
            analysis.axes.constrain(refs[place], Freedom.NONE, f"{label(node)} cuts or lengthens it")
            size = want if isinstance(want, int) else None
            refs[place] = analysis.axes.frozen(size, f"{label(node)} cuts or lengthens it")
    analysis.set(node.outputs[0], refs)


def _same_length(analysis: Analysis, ref: Ref, dim: Dim) -> bool:
    if isinstance(dim, Ref):
        return analysis.axes.same(ref, dim)
    return dim is not None and analysis.axes.size(ref) == dim


# -- sums over an axis -------------------------------------------------------------------------------------------

_REDUCE = {
    "ReduceMean": (Freedom.ORTHOGONAL_ONES, Freedom.GENERAL),
    "ReduceSum": (Freedom.ORTHOGONAL_ONES, Freedom.GENERAL),
    "ReduceL2": (Freedom.ORTHOGONAL, Freedom.POSITIVE_MONOMIAL),
    "ReduceSumSquare": (Freedom.ORTHOGONAL, Freedom.PERMUTATION),
    "ReduceL1": (Freedom.SIGNED_PERMUTATION, Freedom.POSITIVE_MONOMIAL),
    "ReduceMax": (Freedom.PERMUTATION, Freedom.POSITIVE_MONOMIAL),
    "ReduceMin": (Freedom.PERMUTATION, Freedom.POSITIVE_MONOMIAL),
    "ReduceProd": (Freedom.PERMUTATION, Freedom.PERMUTATION),
    "ReduceLogSum": (Freedom.PERMUTATION, Freedom.PERMUTATION),
    "ReduceLogSumExp": (Freedom.PERMUTATION, Freedom.PERMUTATION),
}


@rule(*_REDUCE)
def reduce(analysis: Analysis, node: ir.Node) -> None:
    """The sum over an axis is kept by what keeps the ones vector, the sum of squares by any rotation."""
    refs = analysis.refs(node.inputs[0])
    places = _ints(analysis, node, 1, "axes")
    if places is None and optional(node, 1) is not None:
        analysis.opaque(node, f"{label(node)} has axes that are computed at run time")
        return
    if not places and not node.attributes.get_int("noop_with_empty_axes", 0):
        places = list(range(len(refs)))
    gone = {place % len(refs) for place in places or ()}
    reduced, other = _REDUCE[node.op_type]
    for i, ref in enumerate(refs):
        analysis.axes.constrain(ref, reduced if i in gone else other, f"{label(node)} sums over an axis")
    keep = node.attributes.get_int("keepdims", 1)
    out = [analysis.axes.one if i in gone else ref for i, ref in enumerate(refs) if keep or i not in gone]
    analysis.set(node.outputs[0], out)


@rule("CumSum", "CumProd")
def cumulate(analysis: Analysis, node: ir.Node) -> None:
    """Running sums along one axis are linear along the others, running products act on each element there."""
    refs = analysis.refs(node.inputs[0])
    axis = analysis.constant(node.inputs[1])
    for ref in refs if axis is None else [refs[int(axis.reshape(-1)[0])]]:
        analysis.axes.constrain(ref, Freedom.NONE, f"{label(node)} goes along it in order")
    for ref in refs if node.op_type == "CumProd" else ():
        analysis.axes.constrain(ref, Freedom.PERMUTATION, f"{label(node)} acts on each element")
    analysis.set(node.outputs[0], refs)


@rule("Trilu")
def trilu(analysis: Analysis, node: ir.Node) -> None:
    """Masks the last two axes by position; linear along the others."""
    refs = analysis.refs(node.inputs[0])
    for ref in refs[-2:]:
        analysis.axes.constrain(ref, Freedom.DIAGONAL, f"{label(node)} masks it by position")
    analysis.set(node.outputs[0], refs)


@rule("ArgMax", "ArgMin")
def argmax(analysis: Analysis, node: ir.Node) -> None:
    """The index of an element means its place on the axis."""
    refs = analysis.refs(node.inputs[0])
    axis = node.attributes.get_int("axis", 0) % len(refs)
    for i, ref in enumerate(refs):
        analysis.axes.constrain(ref, Freedom.NONE if i == axis else Freedom.POSITIVE_MONOMIAL, label(node))
    keep = node.attributes.get_int("keepdims", 1)
    places = [analysis.axes.one if i == axis else ref.through(Mode.PLAIN) for i, ref in enumerate(refs)]
    analysis.set(node.outputs[0], [ref for i, ref in enumerate(places) if keep or i != axis])


@rule("Size")
def count(analysis: Analysis, node: ir.Node) -> None:
    """The number of elements does not depend on the basis."""
    analysis.set(node.outputs[0], [])


@rule("Range", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
def made(analysis: Analysis, node: ir.Node) -> None:
    """New values that depend on no space."""
    sizes = dims(analysis, node.inputs[0]) if node.op_type == "ConstantOfShape" else None
    stated = node.outputs[0].shape
    out: list[Ref] | None
    if node.op_type.endswith("Like"):
        out = [analysis.axes.frozen(analysis.axes.size(ref), label(node)) for ref in analysis.refs(node.inputs[0])]
    elif sizes is not None:
        out = [_equal(analysis, node, dim) for dim in sizes]
    elif stated is not None:
        out = [analysis.axes.frozen(static(dim), label(node)) for dim in stated]
    else:
        out = [analysis.axes.frozen(None, label(node))] if node.op_type == "Range" else None
    analysis.set(node.outputs[0], out)


def _equal(analysis: Analysis, node: ir.Node, dim: Dim) -> Ref:
    """An axis of a tensor of equal numbers: what keeps the vector of ones changes nothing, zeros stay in any case."""
    ref = dim if isinstance(dim, Ref) else analysis.axes.fresh(dim)
    value = node.attributes.get_tensor("value", None)
    if value is not None and value.numpy().any():
        analysis.axes.constrain(ref, Freedom.ORTHOGONAL_ONES, f"{label(node)} puts one number along the axis")
    return ref
