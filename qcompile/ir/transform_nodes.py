"""Function nodes that apply a transform to the last axis: written and read here, and spelled nowhere else.

A node reads the value and one constant for each step of ``Transform.factors``. Its attributes, which its function
declares, are the structure: the ``kind`` of the transform, and for each step the sizes ``outer``, ``width`` and
``inner`` of the axis that it sees.

An ONNX function has one body, so there is one for each body, named after its digest. Overloads of one name would say
the same, but ONNX's reference evaluator knows no overloads and takes one body for all. Nothing reads the name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcompile.errors import InputError
from qcompile.ir.functions import ALLOWZERO, DOMAIN, ensure_function, opset
from qcompile.ir.graph import append_node, ensure_initializer, label

__all__ = ["Structure", "append_transform", "halved", "is_transform", "read_transform"]

#: ``(outer, inner, M)`` as in ``transforms.steps``, first applied first.
Step = tuple[int, int, np.ndarray]

_KIND, _SIZES = "kind", ("outer", "width", "inner")


@dataclass(frozen=True, eq=False)
class Structure:
    """A transform as graphs hold it.

    Args:
        kind: its ``Transform.kind``.
        steps: its ``Transform.factors``, in the type in which they are computed.
    """

    kind: str
    steps: Sequence[Step]


def is_transform(node: ir.Node) -> bool:
    """Whether a node applies a transform to the value that it reads first."""
    return node.domain == DOMAIN and all(name in node.attributes for name in (_KIND, *_SIZES))


def read_transform(node: ir.Node) -> Structure | None:
    """The structure of the transform that a node applies, ``None`` for other nodes and matrices that are computed.

    Raises:
        InputError: if the constants do not have the sizes that the attributes state.
    """
    if not is_transform(node):
        return None
    given = [None if value is None else _content(value) for value in node.inputs[1:]]
    constants = [constant for constant in given if constant is not None]
    if len(constants) < len(given):
        return None
    outer, widths, inner = (node.attributes[name].as_ints() for name in _SIZES)
    if (own := [constant.shape[-1] for constant in constants]) != [*widths]:
        raise InputError(f"{label(node)} states steps of the sizes {[*widths]}, but its constants have {own}")
    steps = [(o, i, _turned(constant, i)) for o, i, constant in zip(outer, inner, constants, strict=True)]
    return Structure(node.attributes[_KIND].as_string(), steps)


def halved(matrix: np.ndarray) -> np.ndarray | None:
    """A matrix in float16, as it may be stored; ``None`` where that does not hold all its entries."""
    with np.errstate(over="ignore"):
        half = matrix.astype(np.float16)
    return half if np.array_equal(half, matrix) else None


def _content(value: ir.Value) -> np.ndarray | None:
    """A constant, which may be stored in another type than it is read in."""
    if value.const_value is not None:
        return value.const_value.numpy()
    cast = value.producer()
    if cast is None or cast.op_type != "Cast" or cast.domain or (stored := cast.inputs[0]) is None:
        return None
    read = ir.DataType(cast.attributes["to"].as_int()).numpy()
    return None if stored.const_value is None else stored.const_value.numpy().astype(read)


def append_transform(
    model: ir.Model, before: ir.Node, value: ir.Value, structure: Structure, dtype: np.dtype, name: str
) -> ir.Value:
    """Put the transform of a value in front of a node.

    Args:
        model: gets the function and the constants: they are inputs of the node, so that graphs stay small.
        before: the first that may read the result.
        value: with the axis as its last.
        structure: of the transform.
        dtype: of the constants, but of those that are indices.
        name: of the node and of its result.
    """
    padded = any(m.ndim == 3 or inner > 1 for _, inner, m in structure.steps) and _may_be_empty(value)
    settings = (
        " <allowzero = 1>" if opset(model) >= ALLOWZERO else ""
    )  # a 0 in the shape is a size, not an axis to keep
    text = _function(structure, padded, settings)
    function = ensure_function(model, f"Transform_{_digest(text.encode())}", text)
    inputs = [value, *(_constant(model, step, dtype) for step in structure.steps)]
    return append_node(before, function, inputs, _attributes(structure), name=name, domain=DOMAIN, like=value).outputs[
        0
    ]


def _attributes(structure: Structure) -> dict[str, str | ir.Attr]:
    outer = [outer for outer, _, _ in structure.steps]
    widths = [matrix.shape[-1] for _, _, matrix in structure.steps]
    inner = [inner for _, inner, _ in structure.steps]
    sizes = zip(_SIZES, (outer, widths, inner), strict=True)
    return {_KIND: structure.kind} | {name: ir.AttrInt64s(name, own) for name, own in sizes}


# ---- constants ---------------------------------------------------------------------------------------------------


def _constant(model: ir.Model, step: Step, dtype: np.dtype) -> ir.Value:
    _, inner, matrix = step
    content = _turned(matrix if _gathers(matrix) else matrix.astype(dtype), inner)
    return ensure_initializer(model, f"transform_{_digest(content.tobytes() + str(content.shape).encode())}", content)


def _gathers(matrix: np.ndarray) -> bool:
    """Whether a step is a permutation."""
    return matrix.ndim == 1 and np.issubdtype(matrix.dtype, np.integer)


def _turned(matrix: np.ndarray, inner: int) -> np.ndarray:
    """The constant of a step from its matrix, and back: products from the right take it transposed."""
    return matrix.swapaxes(-1, -2) if matrix.ndim > 1 and inner == 1 else matrix


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


# ---- bodies ------------------------------------------------------------------------------------------------------


def _function(structure: Structure, padded: bool, settings: str) -> str:
    """Signature and body in ONNX's textual syntax."""
    steps = structure.steps
    start, end = _with_a_row(_size(structure.steps[0])) if padded else _AS_IT_IS
    body = ["shape = Shape(x)", *start]
    for i, step in enumerate(steps):
        body += _step(i, step)
    body += [f"last = Identity(v{len(steps)})", *(line.replace("{settings}", settings) for line in end)]
    declared, inputs = ", ".join((_KIND, *_SIZES)), ", ".join(["x", *(f"m{i}" for i in range(len(steps)))])
    return f"<{declared}> ({inputs}) => (y) {{ " + "\n".join(body) + " }"


#: Lines before and after the steps.
_AS_IT_IS = ["v0 = Identity(x)"], ["y = Reshape{settings} (last, shape)"]


def _size(step: Step) -> int:
    """Length of the axis that a step sees."""
    outer, inner, matrix = step
    return outer * matrix.shape[-1] * inner


def _with_a_row(size: int) -> tuple[list[str], list[str]]:
    """The same around a row of zeros more: onnxruntime refuses batched products of nothing, or ends the process."""
    start = [f"flat = Constant <value = int64[2] {{-1, {size}}}> ()", "rows = Reshape(x, flat)",
             "more = Constant <value = int64[4] {0, 0, 1, 0}> ()", "v0 = Pad(rows, more)"]  # fmt: skip
    end = ["zero = Constant <value = int64[1] {0}> ()", "end = Constant <value = int64[1] {-1}> ()",
           "all = Reshape(last, flat)", "own = Slice(all, zero, end, zero)",
           "y = Reshape{settings} (own, shape)"]  # fmt: skip
    return start, end


def _step(i: int, step: Step) -> list[str]:
    """Lines that compute ``v{i+1}`` from ``v{i}`` and the constant ``m{i}``."""
    (outer, inner, matrix), result = step, f"v{i + 1}"
    width = matrix.shape[-1]
    if _gathers(matrix):
        seen, lines = [width], [f"{result} = Gather <axis = 1> (w{i}, m{i})"]
    elif matrix.ndim == 1:
        seen, lines = [width], [f"{result} = Mul(w{i}, m{i})"]
    elif matrix.ndim == 3 and inner == 1:  # one matrix per block: batched over blocks, rows of the input in each batch
        seen, lines = [outer, width], [f"a{i} = Transpose <perm = [1, 0, 2]> (w{i})", f"b{i} = MatMul(a{i}, m{i})",
                                       f"{result} = Transpose <perm = [1, 0, 2]> (b{i})"]  # fmt: skip
    elif inner == 1:
        seen, lines = [width], [f"{result} = MatMul(w{i}, m{i})"]
    else:
        seen = [outer, width, inner] if matrix.ndim == 3 else [width, inner]
        lines = [f"{result} = MatMul(m{i}, w{i})"]
    sizes = ", ".join(map(str, (-1, *seen)))
    view = f"r{i} = Constant <value = int64[{1 + len(seen)}] {{{sizes}}}> ()"
    return [view, f"w{i} = Reshape(v{i}, r{i})", *lines]


def _may_be_empty(value: ir.Value) -> bool:
    """Whether a value may have no row: with a batch of none, a past of none, or an expert that no token chose."""
    return value.shape is None or any(not isinstance(dim, int) or dim == 0 for dim in value.shape)
