"""Sizes as values: which axis each entry of a shape tensor stands for, through the arithmetic of exporters.

An entry is a number, or an axis whose length is known at run time alone: a product of axes where exporters multiply
them, a batch times its heads. What cannot be followed is ``None``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir

from qcompile.analysis.axes import AxisNode, Ref
from qcompile.analysis.spaces import Analysis, follows
from qcompile.ir.graph import SMALL
from qcompile.shapes.arithmetic import OPERATORS, Arithmetic
from qcompile.shapes.evaluate import TABLE, evaluate, measured

__all__ = ["Dim", "arithmetic", "dims", "size_of", "take"]

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
    if value is None:
        return None
    if value in analysis.dims_of:
        return analysis.dims_of[value]
    array = analysis.constant(value)
    return None if array is None or value.dtype not in _INTEGERS else array.astype(object)


def _open(analysis: Analysis, value: ir.Value | None) -> np.ndarray | None:
    """The entries of a small integer tensor of which none can be followed: those beside them still can."""
    refs = None if value is None or value.dtype not in _INTEGERS else analysis.refs_or_none(value)
    if refs is None:
        return None
    sizes = [size for ref in refs if (size := analysis.axes.size(ref)) is not None]
    return None if len(sizes) < len(refs) or math.prod(sizes) > SMALL else np.full(sizes, None)


@follows(*TABLE)
def _follow(analysis: Analysis, node: ir.Node) -> None:
    """Remember what the entries of an operator's outputs stand for, so long as they are integers."""
    made = _measured(analysis, node) if node.op_type in ("Shape", "Size") else _computed(analysis, node)
    for value, array in zip(node.outputs, made or ()):
        if not any(isinstance(item, float) for item in array.flat):
            analysis.dims_of[value] = array


def _measured(analysis: Analysis, node: ir.Node) -> list[np.ndarray] | None:
    refs = analysis.refs_or_none(node.inputs[0])
    if refs is None:
        return None
    return [measured(node, len(refs), lambda axis: size_of(analysis, refs[axis]), arithmetic(analysis))]


def _computed(analysis: Analysis, node: ir.Node) -> list[np.ndarray] | None:
    operands = [_known(analysis, value) for value in node.inputs]
    if all(operand is None for operand in operands):
        return None
    filled = [_open(analysis, v) if array is None else array for v, array in zip(node.inputs, operands, strict=True)]
    return evaluate(node, filled, arithmetic(analysis), SMALL)


def take(analysis: Analysis, factors: list[Ref], dim: Ref, *, back: bool, reason: str) -> list[Ref] | None:
    """Remove factors of that total size from an end of the list, splitting the last one if needed."""
    axes = analysis.axes
    taken: list[Ref] = []
    number, dynamic = _parts(analysis, dim)
    while number > 1 or dynamic:
        if not factors:
            return None
        ref = factors[-1 if back else 0]
        size, node = axes.size(ref), axes.find(ref).node
        if size is None and node in dynamic:
            dynamic.remove(node)
            group: list[Ref] | None = [factors.pop(-1 if back else 0)]
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


def _parts(analysis: Analysis, dim: Ref) -> tuple[int, list[AxisNode]]:
    """A size as a number times the lengths of dynamic axes."""
    factors = analysis.axes.factors(dim)
    number = math.prod(size for ref in factors if (size := analysis.axes.size(ref)) is not None)
    return number, [analysis.axes.find(ref).node for ref in factors if analysis.axes.size(ref) is None]


# -- arithmetic ----------------------------------------------------------------------------------------------------


def arithmetic(analysis: Analysis) -> Arithmetic:
    """Arithmetic of sizes; an operator that is not followed leaves an entry open, and not the entries beside it."""
    own = {op: partial(function, analysis) for op, function in _FOLLOWED.items()}
    return Arithmetic(dict.fromkeys(OPERATORS, lambda *_: None) | own)


def _equal(analysis: Analysis, a: Dim, b: Dim) -> bool | None:
    """Whether two sizes are equal, ``None`` if that depends on the input; no length is negative."""
    if a is None or b is None:
        return None
    if isinstance(a, int) or isinstance(b, int):
        number = a if isinstance(a, int) else b
        return False if isinstance(number, int) and number < 0 else None
    left, right = _parts(analysis, a), _parts(analysis, b)
    return True if left[0] == right[0] and Counter(left[1]) == Counter(right[1]) else None


def _times(analysis: Analysis, a: Dim, b: Dim) -> Dim:
    if 1 in (a, b):
        return b if a == 1 else a
    if a is None or b is None or any(isinstance(side, int) and side < 1 for side in (a, b)):
        return None
    return analysis.axes.product([Ref(AxisNode(side)) if isinstance(side, int) else side for side in (a, b)])


def _divided(analysis: Analysis, a: Dim, b: Dim) -> Dim:
    if not isinstance(a, Ref) or not isinstance(b, int) or b < 1:
        return None
    number, dynamic = _parts(analysis, a)
    if number % b:
        return None
    return analysis.axes.product([Ref(AxisNode(number // b)), *map(Ref, dynamic)])


def _largest(analysis: Analysis, a: Dim, b: Dim) -> Dim:
    """The larger one: what broadcasting makes of two sizes."""
    if 1 in (a, b):
        return b if a == 1 else a
    return a if _equal(analysis, a, b) else None


def _shifted(analysis: Analysis, a: Dim, b: Dim) -> Dim:
    """A sum or difference; a zero on the right changes nothing."""
    return a if b == 0 else None


def _cast(analysis: Analysis, dim: Dim, dtype: ir.DataType) -> Dim:
    return dim if dtype in (ir.DataType.INT64, ir.DataType.INT32) else None


_FOLLOWED: dict[str, Callable[..., Dim]] = {
    "Mul": _times, "Div": _divided, "Max": _largest, "Add": _shifted, "Sub": _shifted, "Equal": _equal, "Cast": _cast,
}  # fmt: skip
