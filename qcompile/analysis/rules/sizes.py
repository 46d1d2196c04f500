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

import numpy as np
import onnx_ir as ir

from qcompile.analysis.axes import Node, Ref
from qcompile.analysis.spaces import Analysis, follows
from qcompile.ir.graph import SMALL

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
    known = _known(analysis, value)
    return None if known is None else known.reshape(-1).tolist()


def _known(analysis: Analysis, value: ir.Value | None) -> np.ndarray | None:
    """The entries of an integer tensor, in its shape."""
    if value in analysis.dims_of:
        return analysis.dims_of[value]
    array = analysis.constant(value)
    return None if array is None or value.dtype not in _INTEGERS else array.astype(object)


def _numbers_of(analysis: Analysis, node: ir.Node, index: int, attribute: str = "") -> list[int] | None:
    """An operand that is read as numbers, or the attribute that it was in older opsets."""
    if attribute in node.attributes:
        return list(node.attributes.get_ints(attribute))
    known = _known(analysis, node.inputs[index]) if index < len(node.inputs) else None
    found = None if known is None else known.reshape(-1).tolist()
    return found if found is not None and all(isinstance(item, int) for item in found) else None


def _sizes(analysis: Analysis, value: ir.Value) -> list[int] | None:
    """The shape of a tensor if all of it is known and it is small."""
    refs = analysis.refs(value)
    sizes = [None] if refs is None else [analysis.axes.size(ref) for ref in refs]
    return None if None in sizes or math.prod(sizes) > SMALL else sizes


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
def _by_pairs(analysis: Analysis, node: ir.Node) -> np.ndarray | None:
    operands = [_known(analysis, value) for value in node.inputs]
    if len(operands) != 2 or any(operand is None for operand in operands):
        return operands[0] if len(operands) == 1 else None
    return _each(lambda a, b: _PAIRS[node.op_type](analysis, a, b), *operands)


def _each(function: Callable[..., Dim], *operands: np.ndarray) -> np.ndarray:
    return np.asarray(np.frompyfunc(function, len(operands), 1)(*operands), object)


@follows("Where")
def _chosen(analysis: Analysis, node: ir.Node) -> np.ndarray | None:
    operands = [_known(analysis, value) for value in node.inputs]
    if any(operand is None for operand in operands):
        return None
    return _each(lambda choice, a, b: None if choice is None else (a if choice else b), *operands)


@follows("ReduceProd")
def _multiplied(analysis: Analysis, node: ir.Node) -> np.ndarray | None:
    known, shape = _known(analysis, node.inputs[0]), _sizes(analysis, node.outputs[0])
    if known is None or shape is None or math.prod(shape) != 1:
        return None
    total: Dim = 1
    for dim in known.reshape(-1):
        total = _times(analysis, total, dim)
    return _array([total]).reshape(shape)


# -- views ---------------------------------------------------------------------------------------------------------


def _array(dims: Sequence[Dim]) -> np.ndarray:
    array = np.empty(len(dims), object)
    array[:] = dims
    return array


@follows("Shape")
def _shape(analysis: Analysis, node: ir.Node) -> np.ndarray | None:
    refs = analysis.refs(node.inputs[0])
    if refs is None:
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(refs))
    return _array([size_of(analysis, ref) for ref in refs][start:end])


@follows("Size")
def _size(analysis: Analysis, node: ir.Node) -> np.ndarray | None:
    refs = analysis.refs(node.inputs[0])
    return None if refs is None else _array([size_of(analysis, analysis.axes.product(refs))]).reshape(())


@follows("Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Identity")
def _reshaped(analysis: Analysis, node: ir.Node) -> np.ndarray | None:
    """The same entries, so long as they are integers."""
    made, known, shape = node.outputs[0].dtype, _known(analysis, node.inputs[0]), _sizes(analysis, node.outputs[0])
    kept = made == node.inputs[0].dtype or made in (ir.DataType.INT64, ir.DataType.INT32)
    fits = kept and known is not None and shape is not None and known.size == math.prod(shape)
    return known.reshape(shape) if fits else None


@follows("Transpose")
def _moved(analysis: Analysis, node: ir.Node) -> np.ndarray | None:
    known = _known(analysis, node.inputs[0])
    return None if known is None else known.transpose(node.attributes.get_ints("perm", None))


@follows("Gather")
def _gathered(analysis: Analysis, node: ir.Node) -> np.ndarray | None:
    known, picked = analysis.dims_of.get(node.inputs[0]), analysis.constant(node.inputs[1])
    axis = node.attributes.get_int("axis", 0)
    return None if known is None or picked is None else np.asarray(np.take(known, picked, axis), object)


@follows("Slice")
def _cut(analysis: Analysis, node: ir.Node) -> np.ndarray | None:
    known = _known(analysis, node.inputs[0])
    names = ("starts", "ends", "axes", "steps")
    bounds = [_numbers_of(analysis, node, i, name) for i, name in enumerate(names, 1)]
    given = [index < len(node.inputs) and node.inputs[index] is not None for index in (3, 4)]
    if known is None or None in bounds[:2] or any(g and b is None for g, b in zip(given, bounds[2:], strict=True)):
        return None
    starts, ends = bounds[:2]
    axes, steps = bounds[2] or range(len(starts)), bounds[3] or [1] * len(starts)
    cuts = [slice(None)] * known.ndim
    for axis, *bound in zip(axes, starts, ends, steps, strict=True):
        cuts[axis] = slice(*bound)
    return known[tuple(cuts)]


@follows("Split")
def _parts_of(analysis: Analysis, node: ir.Node) -> np.ndarray | None:
    known, shapes = analysis.dims_of.get(node.inputs[0]), [_sizes(analysis, value) for value in node.outputs]
    if known is None or known.ndim != 1 or None in shapes or sum(map(math.prod, shapes)) != known.size:
        return None
    parts = np.split(known, list(itertools.accumulate(map(math.prod, shapes)))[:-1])
    analysis.dims_of.update(zip(node.outputs, parts, strict=True))
    return parts[0]


@follows("Concat")
def _joined(analysis: Analysis, node: ir.Node) -> np.ndarray | None:
    parts, shapes = ([of(analysis, value) for value in node.inputs] for of in (_known, _sizes))
    if None in shapes or all(part is None for part in parts):
        return None
    filled = [np.full(shape, None) if part is None else part for part, shape in zip(parts, shapes, strict=True)]
    return np.concatenate(filled, node.attributes.get_int("axis"))


@follows("ConstantOfShape")
def _filled(analysis: Analysis, node: ir.Node) -> np.ndarray | None:
    shape, value = _sizes(analysis, node.outputs[0]), node.attributes.get_tensor("value", None)
    if shape is None or value is None or value.dtype not in _INTEGERS:
        return None
    return np.full(shape, int(value.numpy().reshape(-1)[0]), object)
