"""Shape arithmetic: evaluates what follows from shapes and small constants while the program is generated.

``evaluate`` knows, for a node whose inputs are all host values, its outputs as arrays of numbers and symbols, or that
it cannot be told (``None``): then the node runs on the GPU like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.backends.gpu.symbols import ARITHMETIC, Symbol, as_array, cast, host_array

__all__ = ["LARGEST", "constant", "evaluate"]

#: Elements of a host value; larger ones are tensors on the GPU.
LARGEST = 64

#: The same for constants of floats: few are scales of a resampling, many are weights.
LARGEST_FLOATS = 8

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
Arrays = Sequence["np.ndarray | None"]
_KINDS = {ir.DataType.INT64: int, ir.DataType.INT32: int, ir.DataType.BOOL: bool, ir.DataType.FLOAT: float,
          ir.DataType.DOUBLE: float, ir.DataType.FLOAT16: float, ir.DataType.BFLOAT16: float}  # fmt: skip


def constant(value: ir.Value) -> np.ndarray | None:
    """A small constant as a host value."""
    tensor = value.const_value
    if tensor is None or tensor.dtype not in _KINDS or len(tensor.shape) > 2:
        return None
    if tensor.size > (LARGEST_FLOATS if tensor.dtype in _FLOATS else LARGEST):
        return None
    return host_array(tensor.numpy().astype(_KINDS[tensor.dtype]))


def evaluate(node: ir.Node, inputs: Arrays) -> list[np.ndarray] | None:
    """The outputs of a node from its inputs, ``None`` where one is missing or the operator has no row here."""
    row = _ROWS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    present = [array for value, array in zip(node.inputs, inputs, strict=True) if value is not None]
    if row is None or any(array is None for array in present):
        return None
    result = row(node, *inputs)
    if result is None:
        return None
    results = [as_array(item) for item in (result if isinstance(result, list) else [result])]
    return results if all(array.size <= LARGEST for array in results) else None


def _literals(array: np.ndarray | None) -> list[int] | None:
    """The numbers, or ``None`` if one is not known yet."""
    if array is None or any(isinstance(item, Symbol) for item in array.reshape(-1)):
        return None
    return [int(item) for item in array.reshape(-1)]


def _axes(node: ir.Node, array: np.ndarray | None) -> list[int] | None:
    """Axes given as an attribute (older opsets) or as an input."""
    return list(node.attributes.get_ints("axes")) if "axes" in node.attributes else _literals(array)


def _elementwise(op: str) -> Callable[..., np.ndarray]:
    return lambda node, *arrays: ARITHMETIC[op](*arrays)


def _folded(op: str) -> Callable[..., np.ndarray]:
    """Max and Min take any number of inputs."""

    def row(node: ir.Node, *arrays: np.ndarray) -> np.ndarray:
        result = arrays[0]
        for array in arrays[1:]:
            result = ARITHMETIC[op](result, array)
        return result

    return row


def _div(node: ir.Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ARITHMETIC["TrueDiv" if node.outputs[0].dtype in _FLOATS or _holds_float(a, b) else "Div"](a, b)


def _holds_float(*arrays: np.ndarray) -> bool:
    return any(isinstance(item, float) for array in arrays for item in array.reshape(-1))


def _cast(node: ir.Node, a: np.ndarray, *_: Any) -> np.ndarray | None:
    kind = _KINDS.get(ir.DataType(node.attributes.get_int("to")))
    return None if kind is None else as_array(np.frompyfunc(lambda item: cast(item, kind), 1, 1)(a))


def _gather(node: ir.Node, a: np.ndarray, indices: np.ndarray) -> np.ndarray | None:
    rows = _literals(indices)
    if rows is None:
        return None
    return a.take(np.array(rows, int).reshape(indices.shape), node.attributes.get_int("axis", 0)) if a.ndim else None


def _slice(node: ir.Node, a: np.ndarray, *bounds: np.ndarray | None) -> np.ndarray | None:
    if "starts" in node.attributes:
        starts, ends = list(node.attributes.get_ints("starts")), list(node.attributes.get_ints("ends"))
        axes, steps = node.attributes.get_ints("axes", None), None
    else:
        starts, ends, axes, steps = [_literals(b) for b in [*bounds, None, None][:4]]
    if starts is None or ends is None:
        return None
    cut: list[slice] = [slice(None)] * a.ndim
    for i, axis in enumerate(axes if axes is not None else range(len(starts))):
        step = steps[i] if steps else 1
        end = None if step < 0 and ends[i] < -a.shape[axis] else ends[i]
        cut[axis] = slice(starts[i], end, step)
    return a[tuple(cut)]


def _concat(node: ir.Node, *arrays: np.ndarray) -> np.ndarray:
    return np.concatenate(arrays, node.attributes.get_int("axis", 0))


def _unsqueeze(node: ir.Node, a: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray | None:
    found = _axes(node, axes)
    return None if found is None else np.expand_dims(a, tuple(found))


def _squeeze(node: ir.Node, a: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    found = _axes(node, axes)
    return np.squeeze(a, None if found is None else tuple(found))


def _reshape(node: ir.Node, a: np.ndarray, shape: np.ndarray) -> np.ndarray | None:
    sizes = _literals(shape)
    if sizes is None:
        return None
    if not node.attributes.get_int("allowzero", 0):
        sizes = [a.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return a.reshape(sizes)


def _expand(node: ir.Node, a: np.ndarray, shape: np.ndarray) -> np.ndarray | None:
    sizes = _literals(shape)
    if sizes is None or np.prod(sizes) > LARGEST:
        return None
    return np.broadcast_to(a, np.broadcast_shapes(a.shape, tuple(sizes)))


def _constant_of_shape(node: ir.Node, shape: np.ndarray) -> np.ndarray | None:
    sizes = _literals(shape)
    if sizes is None or np.prod(sizes) > LARGEST:
        return None
    fill = node.attributes["value"].as_tensor() if "value" in node.attributes else None
    return host_array(np.full(sizes, 0.0 if fill is None else fill.numpy().item()).astype(object))


def _range(node: ir.Node, *bounds: np.ndarray) -> np.ndarray | None:
    known = [_literals(bound) for bound in bounds]
    if any(bound is None for bound in known) or _holds_float(*bounds):
        return None
    return host_array(np.arange(*(bound[0] for bound in known)))


def _reduce(op: str) -> Callable[..., np.ndarray | None]:
    def row(node: ir.Node, a: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray | None:
        if a.ndim != 1 or a.size == 0:
            return None
        result = np.atleast_1d(a)[:1]
        for i in range(1, a.size):
            result = ARITHMETIC[op](result, a[i : i + 1])
        return result if node.attributes.get_int("keepdims", 1) else result.reshape(())

    return row


def _split(node: ir.Node, a: np.ndarray, sizes: np.ndarray | None = None) -> list[np.ndarray] | None:
    given = node.attributes.get_ints("split", None) or _literals(sizes)
    axis = node.attributes.get_int("axis", 0)
    count = len(node.outputs)
    part = -(-a.shape[axis] // count)
    given = given or [min(part, a.shape[axis] - i * part) for i in range(count)]
    return np.split(a, np.cumsum(given)[:-1], axis)


def _transpose(node: ir.Node, a: np.ndarray) -> np.ndarray:
    return a.transpose(node.attributes.get_ints("perm", None))


_ROWS: dict[str, Callable[..., Any]] = {
    **{op: _elementwise(op) for op in (
        "Add", "Sub", "Mul", "Mod", "Pow", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or",
        "Not", "Neg", "Abs", "Sqrt", "Reciprocal", "Floor", "Ceil", "Where",
    )},
    "Max": _folded("Max"),
    "Min": _folded("Min"),
    "Div": _div,
    "Cast": _cast,
    "Identity": lambda node, a: a,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Flatten": lambda node, a: a.reshape(1, -1) if a.ndim == 1 and node.attributes.get_int("axis", 1) == 0 else None,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "ReduceProd": _reduce("Mul"),
    "ReduceSum": _reduce("Add"),
    "ReduceMax": _reduce("Max"),
    "ReduceMin": _reduce("Min"),
    "Split": _split,
    "Transpose": _transpose,
}  # fmt: skip
