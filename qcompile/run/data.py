"""Data to run a model on, from ``.npz`` files or drawn at random where there are none."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.errors import InputError
from qcompile.ir.files import read_arrays
from qcompile.ir.required import dtype_of, name_of, operand, sizes_of
from qcompile.run.session import check_names

__all__ = ["Data", "Draw", "accepted", "example_inputs", "load_data"]

#: Elements of the largest input in one batch.
BATCH_ELEMENTS = 1024


@dataclass(frozen=True)
class Draw:
    """How random inputs are drawn: what dynamic dimensions are, in front and elsewhere, and what flags say."""

    first: int = 2
    other: int = 16
    flag: bool = True


#: How random inputs are drawn, the most usual first: with other lengths, and flags the other way round.
_LENGTHS = ((2, 16), (1, 16), (2, 64), (1, 224), (2, 8), (1, 1))
DRAWS = tuple(Draw(first, other, flag) for first, other in _LENGTHS for flag in (True, False))


@dataclass(frozen=True)
class Data:
    """Inputs to calibrate with, one batch each.

    Args:
        batches: mappings from input name to array.
        random: whether they were drawn at random because no data was given.
    """

    batches: tuple[Mapping[str, np.ndarray], ...]
    random: bool

    @property
    def about(self) -> str:
        """The data in words, for messages."""
        return "random data, drawn because no calibration data was given," if self.random else "the data"

    def first(self, count: int) -> Data:
        """The same with the first batches alone."""
        return Data(self.batches[:count], self.random)


def load_data(path: str | Path | None, model: ir.Model, *, seed: int = 0, batches: int = 8) -> Data:
    """Calibration data from an ``.npz`` file or a folder of them, or random inputs.

    Every array of a file holds rows along its first axis; they are cut into batches.

    Raises:
        InputError: if the file is missing, unreadable, or its names are not the graph's inputs.
    """
    if path is None:
        return _drawn(model, seed, batches)
    names = [name for name in map(name_of, model.graph.inputs) if name not in model.graph.initializers]
    path = Path(path)
    if not path.exists():
        raise InputError(f"there is no calibration data at '{path}'")
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"the folder '{path}' has no .npz files to calibrate with")
    return Data(tuple(batch for file in files for batch in _split(model, read_npz(file, names))), random=False)


def read_npz(file: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of a file, checked against the graph's input names.

    Raises:
        InputError: if it is no ``.npz`` file or the names differ.
    """
    arrays = read_arrays(file)
    try:
        check_names(arrays, names)
    except InputError as error:
        raise InputError(f"'{file}': {error}") from error
    for name, array in arrays.items():
        if array.size == 0:
            raise InputError(f"'{file}': '{name}' is empty")
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise InputError(f"'{file}': '{name}' holds NaN or infinity")
    return arrays


def _split(model: ir.Model, arrays: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Cut a file's rows into batches: of the graph's fixed size, or of a few rows where it takes any number."""
    shapes = {value.name: value.shape for value in model.graph.inputs}
    first = [shape[0] for name in arrays if (shape := shapes[name]) is not None and len(shape)]
    fixed = {dim for dim in first if isinstance(dim, int)}
    rows = {array.shape[0] for array in arrays.values() if array.ndim}
    size = max(fixed) if fixed else _rows_per_batch(arrays)
    if len(rows) != 1 or (count := rows.pop()) < size:
        yield dict(arrays)
        return
    stop = count - size + 1 if fixed else count
    for start in range(0, stop, size):
        yield {name: array[start : start + size] if array.ndim else array for name, array in arrays.items()}


def _rows_per_batch(arrays: Mapping[str, np.ndarray]) -> int:
    """Rows that make up a batch: few enough for the outputs of a model with a large vocabulary to fit in memory."""
    largest = max((array[0].size for array in arrays.values() if array.ndim), default=1)
    return max(1, BATCH_ELEMENTS // max(largest, 1))


# -- random data -------------------------------------------------------------------------------------------------------


def _drawn(model: ir.Model, seed: int, batches: int, draw: Draw = DRAWS[0]) -> Data:
    return Data(tuple(example_inputs(model, seed=seed + i, draw=draw) for i in range(batches)), random=True)


def accepted(
    model: ir.Model, data: Data, run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]], seed: int = 0
) -> tuple[Data, Mapping[str, np.ndarray]]:
    """Data that a model takes, and its outputs for the first batch.

    Random inputs that it refuses, or answers with nothing but NaN, are drawn again in other ways: a mask may be all
    set or all clear, a length may have to be a multiple of something.

    Raises:
        InputError: if it takes none of them.
    """
    refusals: list[InputError] = []
    flags = any(value.dtype == ir.DataType.BOOL for value in model.graph.inputs)
    for draw in [draw for draw in DRAWS if draw.flag or flags] if data.random else DRAWS[:1]:
        if draw is not DRAWS[0]:
            data = _drawn(model, seed, len(data.batches), draw)
        try:
            outputs = run(data.batches[0])
            if all(_says_something(array) for array in outputs.values()):
                return data, outputs
            raise InputError("the model gives nothing but NaN and infinity")
        except InputError as error:
            refusals.append(error)
    first = refusals[0]
    if not data.random:
        raise first
    raise InputError(f"the model takes no random inputs: give it real ones with --calibration; {first}") from first


def _says_something(array: np.ndarray) -> bool:
    return not np.issubdtype(array.dtype, np.floating) or array.size == 0 or bool(np.isfinite(array).any())


def example_inputs(
    model: ir.Model, *, seed: int = 0, sizes: Mapping[str, int] | None = None, draw: Draw | None = None
) -> dict[str, np.ndarray]:
    """Random inputs of a graph's declared shapes and types; ``sizes`` are of dynamic dimensions, by name.

    Integers are drawn below the smallest table that they index, so that every lookup is in range.
    """
    rng = np.random.default_rng(seed)
    draw, symbols = draw or Draw(), dict(sizes or {})
    inputs = {}
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        shape = [_dimension(dim, i, symbols, draw) for i, dim in enumerate(value.shape or ())]
        inputs[name_of(value)] = _random(value, shape, rng, draw.flag)
    return inputs


def _dimension(dim: Any, position: int, symbols: dict[str, int], draw: Draw) -> int:
    """A size for a dimension: of equal names and of sums and products of names, such as ``past + length``, too."""
    if isinstance(dim, int):
        return dim
    name = str(dim.value) if dim.value is not None else f"?{position}"
    default = draw.first if position == 0 else draw.other
    try:
        size = _computed(ast.parse(name, mode="eval").body, symbols, default)
    except (SyntaxError, KeyError, ZeroDivisionError):
        size = 0
    return size if size > 0 else symbols.setdefault(name, default)


def _computed(expression: ast.AST, symbols: dict[str, int], default: int) -> int:
    if isinstance(expression, ast.Name):
        return symbols.setdefault(expression.id, default)
    if isinstance(expression, ast.Constant) and isinstance(expression.value, int):
        return expression.value
    if not isinstance(expression, ast.BinOp):
        raise KeyError(expression)
    left, right = (_computed(side, symbols, default) for side in (expression.left, expression.right))
    return _ARITHMETIC[type(expression.op)](left, right)


_ARITHMETIC = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv,
}  # fmt: skip


def _random(value: ir.Value, shape: Sequence[int], rng: np.random.Generator, flag: bool) -> np.ndarray:
    dtype = dtype_of(value)
    if dtype == ir.DataType.BOOL:
        return np.full(shape, flag)
    if dtype.is_floating_point():
        return rng.standard_normal(shape).astype(dtype.numpy())
    return rng.integers(0, _table_rows(value), shape).astype(dtype.numpy())


def _table_rows(value: ir.Value) -> int:
    """The fewest rows of a table that an integer input indexes directly; 2 where it indexes none."""
    tables = [operand(node, 0) for node, index in value.uses() if node.op_type == "Gather" and index == 1]
    return min((sizes_of(table)[0] for table in tables if table.const_value is not None), default=2)
