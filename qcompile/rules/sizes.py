"""Sizes as values: which axis each entry of a shape tensor stands for, through the arithmetic of exporters.

An entry is a number, or an axis whose length is known at run time alone: a product of axes where exporters multiply
them, a batch times its heads. What cannot be followed is ``None``.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections import Counter
from collections.abc import Callable, Sequence

import onnx_ir as ir

from qcompile.axes import Node, Ref
from qcompile.spaces import Analysis, follows

__all__ = ["Dim", "dims", "size_of", "take"]

Dim = int | Ref | None

_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)


def size_of(analysis: Analysis, ref: Ref) -> Dim:
    """The size of an axis, the axis itself if it is dynamic."""
    size = analysis.axes.size(ref)
    return ref if size is None else size


def dims(analysis: Analysis, value: ir.Value | None) -> list[Dim] | None:
    """A small integer tensor as a list of sizes, for a rule that reads it: it then keeps its basis."""
    if value is not None:  # it may be computed from numbers that have axes
        analysis.freeze([value], f"'{value.name}' is read as a shape")
    return _known(analysis, value)


def _known(analysis: Analysis, value: ir.Value | None) -> list[Dim] | None:
    if value in analysis.dims_of:
        return analysis.dims_of[value]
    array = analysis.constant(value)
    return None if array is None or value.dtype not in _INTEGERS else [int(item) for item in array.reshape(-1)]


def take(analysis: Analysis, factors: list[Ref], dim: Ref, *, back: bool, reason: str) -> list[Ref] | None:
    """Remove factors of that total size from an end of the list, splitting the last one if needed."""
    axes, taken = analysis.axes, []
    number, dynamic = _parts(analysis, dim)
    while number > 1 or dynamic:
        if not factors:
            return None
        ref = factors[-1 if back else 0]
        size, node = axes.size(ref), axes.find(ref).node
        if size is None and node in dynamic:
            dynamic.remove(node)
            group = [factors.pop(-1 if back else 0)]
        elif size and number > 1 and math.gcd(size, number) > 1:
            part = math.gcd(size, number)
            group = (axes.take_back if back else axes.take_front)(factors, part, reason)
            number //= part
        else:
            group = None
        if group is None:
            return None
        taken = group + taken if back else taken + group
    return taken


def _parts(analysis: Analysis, dim: Ref) -> tuple[int, list[Node]]:
    """A size as a number times the lengths of dynamic axes."""
    factors = analysis.axes.factors(dim)
    number = math.prod(size for ref in factors if (size := analysis.axes.size(ref)) is not None)
    return number, [analysis.axes.find(ref).node for ref in factors if analysis.axes.size(ref) is None]


# -- arithmetic ----------------------------------------------------------------------------------------------------


def _equal(analysis: Analysis, a: Dim, b: Dim) -> bool | None:
    """Whether two sizes are equal, ``None`` if that depends on the input; no length is negative."""
    numbers = [isinstance(side, int) for side in (a, b)]
    if all(numbers):
        return a == b
    if any(numbers):
        return False if None not in (a, b) and (a if numbers[0] else b) < 0 else None
    if a is None or b is None:
        return None
    left, right = _parts(analysis, a), _parts(analysis, b)
    return True if left[0] == right[0] and Counter(left[1]) == Counter(right[1]) else None


def _times(analysis: Analysis, a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if 1 in (a, b):
        return b if a == 1 else a
    if None in (a, b) or any(isinstance(side, int) and side < 1 for side in (a, b)):
        return None
    return analysis.axes.product([Ref(Node(side)) if isinstance(side, int) else side for side in (a, b)])


def _divided(analysis: Analysis, a: Dim, b: Dim) -> Dim:
    if not isinstance(b, int) or a is None or b < 1:
        return None
    if isinstance(a, int):
        return a // b if a >= 0 else None
    number, dynamic = _parts(analysis, a)
    if number % b:
        return None
    return analysis.axes.product([Ref(Node(number // b)), *map(Ref, dynamic)])


def _largest(analysis: Analysis, a: Dim, b: Dim) -> Dim:
    """The larger one: what broadcasting makes of two sizes."""
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    if 1 in (a, b):
        return b if a == 1 else a
    return a if _equal(analysis, a, b) else None


def _remainder(a: int, b: int) -> int | None:
    return a % b if b else None


def _numbers(function: Callable[[int, int], int | None]) -> Callable[[Analysis, Dim, Dim], Dim]:
    """An operation on numbers alone, of which a zero on the right changes nothing."""

    def apply(_: Analysis, a: Dim, b: Dim) -> Dim:
        if isinstance(a, int) and isinstance(b, int):
            return function(a, b)
        return a if b == 0 and function is not _remainder else None

    return apply


def _truth(analysis: Analysis, a: Dim, b: Dim) -> Dim:
    found = _equal(analysis, a, b)
    return None if found is None else int(found)


_PAIRS: dict[str, Callable[[Analysis, Dim, Dim], Dim]] = {
    "Mul": _times, "Div": _divided, "Max": _largest, "Add": _numbers(operator.add), "Sub": _numbers(operator.sub),
    "Mod": _numbers(_remainder), "Equal": _truth,
}  # fmt: skip


@follows(*_PAIRS)
def _by_pairs(analysis: Analysis, node: ir.Node) -> list[Dim] | None:
    operands = [_known(analysis, value) for value in node.inputs]
    if len(operands) != 2 or None in operands or not all(operands):
        return operands[0] if len(operands) == 1 else None
    left, right = _together(operands)
    return [_PAIRS[node.op_type](analysis, a, b) for a, b in zip(left, right, strict=True)]


def _together(operands: Sequence[list[Dim]]) -> list[list[Dim]]:
    length = max(map(len, operands))
    return [operand * length if len(operand) == 1 else operand for operand in operands]


@follows("Where")
def _chosen(analysis: Analysis, node: ir.Node) -> list[Dim] | None:
    operands = [_known(analysis, value) for value in node.inputs]
    if not all(operands):
        return None
    rows = zip(*_together(operands), strict=True)
    return [None if choice is None else (a if choice else b) for choice, a, b in rows]


@follows("ReduceProd")
def _multiplied(analysis: Analysis, node: ir.Node) -> list[Dim] | None:
    known = _known(analysis, node.inputs[0])
    if known is None:
        return None
    total: Dim = 1
    for dim in known:
        total = _times(analysis, total, dim)
    return [total]


# -- views ---------------------------------------------------------------------------------------------------------


@follows("Shape")
def _shape(analysis: Analysis, node: ir.Node) -> list[Dim] | None:
    refs = analysis.refs(node.inputs[0])
    if refs is None:
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(refs))
    return [size_of(analysis, ref) for ref in refs][start:end]


@follows("Size")
def _size(analysis: Analysis, node: ir.Node) -> list[Dim] | None:
    refs = analysis.refs(node.inputs[0])
    return None if refs is None else [size_of(analysis, analysis.axes.product(refs))]


@follows("Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Identity")
def _as_it_is(analysis: Analysis, node: ir.Node) -> list[Dim] | None:
    """A tensor of one axis keeps its entries in whatever form, so long as they are integers."""
    made = node.outputs[0].dtype
    kept = made == node.inputs[0].dtype or made in (ir.DataType.INT64, ir.DataType.INT32)
    return _known(analysis, node.inputs[0]) if kept else None


@follows("Gather")
def _gathered(analysis: Analysis, node: ir.Node) -> list[Dim] | None:
    known, picked = analysis.dims_of.get(node.inputs[0]), analysis.constant(node.inputs[1])
    return None if known is None or picked is None else [known[int(i)] for i in picked.reshape(-1)]


@follows("Slice")
def _cut(analysis: Analysis, node: ir.Node) -> list[Dim] | None:
    known = analysis.dims_of.get(node.inputs[0])
    bounds = [_bound(analysis, node, i, name) for i, name in ((1, "starts"), (2, "ends"), (4, "steps"))]
    if known is None or None in bounds[:2] or (bounds[2] is None and len(node.inputs) > 4):
        return None
    return known[slice(*bounds)]


def _bound(analysis: Analysis, node: ir.Node, index: int, attribute: str) -> int | None:
    """One bound of a cut along one axis."""
    if attribute in node.attributes:
        found = list(node.attributes.get_ints(attribute))
    else:
        found = _known(analysis, node.inputs[index]) if index < len(node.inputs) else None
    return found[0] if found and len(found) == 1 and isinstance(found[0], int) else None


@follows("Split")
def _parts_of(analysis: Analysis, node: ir.Node) -> list[Dim] | None:
    known = analysis.dims_of.get(node.inputs[0])
    lengths = [analysis.axes.size(refs[0]) if (refs := analysis.refs(value)) else None for value in node.outputs]
    if known is None or None in lengths or sum(lengths) != len(known):
        return None
    ends = list(itertools.accumulate(lengths))
    parts = [known[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    analysis.dims_of.update(zip(node.outputs, parts, strict=True))
    return parts[0]


@follows("Concat")
def _joined(analysis: Analysis, node: ir.Node) -> list[Dim] | None:
    parts = [_known(analysis, value) for value in node.inputs]
    refs = [analysis.refs(value) for value in node.inputs]
    lengths = [analysis.axes.size(own[0]) if own else None for own in refs]
    if not any(parts) or None in lengths or any(len(own) != 1 for own in refs):
        return None
    filled = [part if part is not None else [None] * n for part, n in zip(parts, lengths, strict=True)]
    return list(itertools.chain.from_iterable(filled))


@follows("ConstantOfShape")
def _filled(analysis: Analysis, node: ir.Node) -> list[Dim] | None:
    sizes, value = _known(analysis, node.inputs[0]), node.attributes.get_tensor("value", None)
    if sizes is None or len(sizes) != 1 or not isinstance(sizes[0], int) or value is None:
        return None
    return [int(value.numpy().reshape(-1)[0])] * sizes[0] if value.dtype in _INTEGERS else None
