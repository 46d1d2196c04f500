"""Operators on small tensors whose entries are scalars: one table for everyone who computes with shapes.

A value is a NumPy array of objects, so that ``Gather``, ``Concat`` and the like are NumPy's; an ``Arithmetic`` computes
with the entries. Operands that say *where* entries go, such as axes and bounds, must be numbers. Semantics are those of
https://onnx.ai/onnx/operators; where runtimes disagree, or the graph is not valid, nothing is known.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial, reduce

import numpy as np
import onnx_ir as ir

from qcompile.shapes.arithmetic import Arithmetic, Scalar, Undecided, as_array, is_number, settled
from qcompile.shapes.call import Call, from_front, integers

__all__ = ["TABLE", "evaluate", "measured"]


def evaluate(
    node: ir.Node, inputs: Sequence[np.ndarray | None], arithmetic: Arithmetic, largest: int
) -> list[np.ndarray] | None:
    """The outputs of a node.

    Args:
        node: an operator.
        inputs: its operands as arrays of objects; ``None`` for one that is not known, or not given.
        arithmetic: of their entries.
        largest: how many entries an output may have.

    Returns:
        An array of objects for each output, or ``None`` where they are not known.
    """
    row = TABLE.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    missing = (value is not None and array is None for value, array in zip(node.inputs, inputs, strict=True))
    if row is None or any(missing):
        return None
    try:
        made = row(Call(node, arithmetic, largest), *inputs)
        arrays = made if isinstance(made, list) else [made]
        results = [settled(as_array(array), value.dtype) for value, array in zip(node.outputs, arrays, strict=True)]
    except Undecided:
        return None
    except (ArithmeticError, IndexError, ValueError):
        return None  # a division by zero, an axis that is not there: in a branch that is never taken they do no harm
    return results if all(array.size <= largest for array in results) else None


def measured(node: ir.Node, rank: int, size: Callable[[int], Scalar], arithmetic: Arithmetic) -> np.ndarray:
    """The output of Shape or Size from the sizes of a tensor's axes; none is asked for that is not needed."""
    if node.op_type == "Size":
        return reduce(arithmetic["Mul"], (as_array(size(axis)) for axis in range(rank)), as_array(1))
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)
    return _vector([size(axis) for axis in range(rank)[start:end]])


def _vector(items: Sequence[Scalar]) -> np.ndarray:
    array = np.empty(len(items), object)
    array[:] = items
    return array


# ---- rows: each takes the call and its operands ------------------------------------------------------------------


def _elementwise(c: Call, *arrays: np.ndarray) -> np.ndarray:
    return c.apply(c.node.op_type, *arrays)


def _variadic(c: Call, *arrays: np.ndarray) -> np.ndarray:
    return reduce(partial(c.apply, c.node.op_type), arrays)


def _div(c: Call, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return c.apply("TrueDiv" if c.real(a, b) else "Div", a, b)


def _mod(c: Call, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return c.apply("Fmod" if c.integer("fmod", 0) else "Mod", a, b)


def _cast(c: Call, x: np.ndarray) -> np.ndarray:
    return c.arithmetic.cast(x, c.node.outputs[0].dtype or ir.DataType(c.integer("to", 0)))


def _gather(c: Call, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    places = np.array(integers(indices), np.int64).reshape(indices.shape)
    return x.take(places, c.integer("axis", 0))


def _slice(c: Call, x: np.ndarray, *operands: np.ndarray | None) -> np.ndarray:
    given = dict(itertools.zip_longest(("starts", "ends", "axes", "steps"), operands))
    starts, ends = (c.needed(name, given[name]) for name in ("starts", "ends"))
    axes = c.listed("axes", given["axes"]) or list(range(len(starts)))
    steps = c.listed("steps", given["steps"]) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = x.take(_places(start, end, step, x.shape[axis]), axis)
    return x


def _places(start: int, end: int, step: int, size: int) -> np.ndarray:
    """The indices of a slice; unlike Python's, a start before the first element counts as the first backwards too."""
    if step < 0 and end >= 2**31 - 1:  # the last element to ONNX, the first one to onnxruntime
        raise Undecided
    start, end = (bound + size if bound < 0 else bound for bound in (start, end))
    low, high = (0, size) if step > 0 else (-1, size - 1)
    start, end = min(max(start, 0), high), min(max(end, low), high)
    return np.array(range(start, end, step), np.int64)


def _squeeze(c: Call, x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    given = c.listed("axes", axes)
    if given == []:  # nothing to some runtimes, everything to others
        raise Undecided
    return np.squeeze(x, None if given is None else tuple(given))


def _unsqueeze(c: Call, x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    return np.expand_dims(x, tuple(c.needed("axes", axes)))


def _reshape(c: Call, x: np.ndarray, shape: np.ndarray | None = None) -> np.ndarray:
    sizes = c.needed("shape", shape)
    if not c.integer("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(c: Call, x: np.ndarray) -> np.ndarray:
    axis = c.integer("axis", 1)
    front = x.shape[: axis if axis == x.ndim else from_front(axis, x.ndim)]
    return x.reshape(math.prod(front), math.prod(x.shape[len(front) :]))


def _transpose(c: Call, x: np.ndarray) -> np.ndarray:
    return x.transpose(c.node.attributes.get_ints("perm", None))


def _concat(c: Call, *arrays: np.ndarray) -> np.ndarray:
    return np.concatenate(arrays, c.integer("axis", 1))  # a default of the first opset


def _split(c: Call, x: np.ndarray, split: np.ndarray | None = None) -> list[np.ndarray]:
    axis, count = c.integer("axis", 0), len(c.node.outputs)
    size, sizes = x.shape[axis], c.listed("split", split)
    if sizes is None:
        part = -(-size // count)
        sizes = [min(part, size - i * part) for i in range(count)]
    if min(sizes) < 0 or sum(sizes) != size:
        raise Undecided
    return np.split(x, list(itertools.accumulate(sizes))[:-1], axis)


def _expand(c: Call, x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    sizes = np.broadcast_shapes(x.shape, tuple(integers(shape)))
    c.reserve(sizes)
    return np.broadcast_to(x, sizes)


def _constant_of_shape(c: Call, shape: np.ndarray) -> np.ndarray:
    sizes, given = integers(shape), c.node.attributes.get("value")
    c.reserve(sizes)
    return np.full(sizes, 0.0 if given is None else given.as_tensor().numpy().astype(object).item(), object)


def _range(c: Call, *bounds: np.ndarray) -> np.ndarray:
    numbers = [bound.item() for bound in bounds]
    if not all(is_number(number) and number == int(number) for number in numbers):  # runtimes round fractions unalike
        raise Undecided
    found = range(*map(int, numbers))
    c.reserve([len(found)])
    return _vector([type(numbers[0])(number) for number in found])


def _reduce(op: str, empty: int | None = None) -> Callable[..., np.ndarray]:
    """The row that joins entries by an operator, of which ``empty`` is the neutral element."""

    def row(c: Call, x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
        gone = [from_front(axis, x.ndim) for axis in c.listed("axes", axes) or ()]
        if not gone and not c.integer("noop_with_empty_axes", 0):
            gone = list(range(x.ndim))
        rest = [size for axis, size in enumerate(x.shape) if axis not in gone]
        kept = [1 if axis in gone else size for axis, size in enumerate(x.shape)]
        moved = np.moveaxis(x, gone, range(len(gone))).reshape(math.prod(x.shape[axis] for axis in gone), *rest)
        if not len(moved) and empty is None:
            raise Undecided
        total = reduce(c.arithmetic[op], (moved[i, ...] for i in range(len(moved)))) if len(moved) else empty
        return np.full(rest, total, object).reshape(kept if c.integer("keepdims", 1) else rest)

    return row


def _one_hot(c: Call, indices: np.ndarray, depth: np.ndarray, values: np.ndarray) -> np.ndarray:
    (count,), places = integers(depth), np.array(integers(indices), np.int64).reshape(indices.shape)
    c.reserve([count, places.size])
    hit = np.arange(count) == np.where(places < 0, places + count, places)[..., None]
    return np.where(np.moveaxis(hit, -1, c.integer("axis", -1)), values[1:], values[:1])


Row = Callable[..., "np.ndarray | list[np.ndarray]"]

#: By operator, a function of a call and its operands.
TABLE: dict[str, Row] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Pow", "Neg", "Abs", "Sqrt", "Exp", "Log", "Reciprocal"), _elementwise),
    **dict.fromkeys(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"), _elementwise),
    **dict.fromkeys(("And", "Or", "Not", "Floor", "Ceil", "Where"), _elementwise),
    "Max": _variadic,
    "Min": _variadic,
    "Div": _div,
    "Mod": _mod,
    "Cast": _cast,
    "Identity": lambda c, x: x,
    "Shape": lambda c, x: measured(c.node, x.ndim, x.shape.__getitem__, c.arithmetic),
    "Size": lambda c, x: as_array(x.size),
    "Gather": _gather,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "OneHot": _one_hot,
    "ReduceSum": _reduce("Add", 0),
    "ReduceProd": _reduce("Mul", 1),
    "ReduceMax": _reduce("Max"),
    "ReduceMin": _reduce("Min"),
}
