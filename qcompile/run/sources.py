"""Data in the forms in which people have it, as batches of named arrays.

A mapping from names to arrays, an iterable of such mappings (a ``DataLoader``, a ``datasets.Dataset``), a function that
gives either, or a path: ``.npz``, ``.npy``, ``.safetensors``, a text, a folder of any of them, a folder of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.errors import InputError
from qcompile.ir.files import read_arrays
from qcompile.ir.required import name_of
from qcompile.run.image_files import IMAGE_FILES, image_arrays
from qcompile.run.input_names import check_names
from qcompile.run.reading import Reading
from qcompile.run.sequences import gathered, is_sequence, tensors
from qcompile.run.text_files import TEXT_FILES, text_arrays

__all__ = ["DataLike", "batches_of", "describe_inputs", "input_values", "shape_of", "type_of"]

#: What ``calibration`` and ``evaluation`` take.
DataLike = str | Path | Mapping[str, Any] | Iterable[Mapping[str, Any]] | Callable[[], Any]

#: Elements of the largest input in one batch.
BATCH_ELEMENTS = 1024

#: Items of an iterable; one with more may have no end.
MOST_BATCHES = 4096

_ARRAYS = (".npz", ".npy", ".safetensors")

#: Nothing said of texts and images.
_PLAIN = Reading()


def input_values(model: ir.Model) -> list[ir.Value]:
    """The inputs of a graph that are no constants."""
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def describe_inputs(model: ir.Model) -> str:
    """The arrays that a graph takes: ``input_ids int64 [batch, length], mask float32 [batch, 1]``."""
    return ", ".join(f"{name_of(value)} {type_of(value)} {shape_of(value)}" for value in input_values(model))


def type_of(value: ir.Value) -> str:
    """The type of a value's elements in words."""
    return "of any type" if value.dtype is None else str(value.dtype.numpy())


def shape_of(value: ir.Value) -> str:
    """The shape of a value in words: ``[batch, 16]``."""
    if value.shape is None:
        return "of any shape"
    dims = f"[{', '.join(str(dim) if isinstance(dim, int) else str(dim.value or '?') for dim in value.shape)}]"
    return f"sequence of {dims}" if is_sequence(value) else dims


def batches_of(
    data: DataLike, model: ir.Model, option: str = "--calibration", reading: Reading = _PLAIN
) -> Iterator[dict[str, np.ndarray]]:
    """Batches for a graph; what has more rows than a batch is cut. ``reading`` is for texts and images.

    Raises:
        InputError: if it is none of the known forms, or its names, types or numbers do not fit the graph; ``option``
            is the option of the command that names it.
    """
    if isinstance(data, str | Path):
        yield from _of_path(Path(data), model, option, reading)
    elif isinstance(data, Mapping):
        yield from _cut(model, _checked(data, model, "the data"))
    elif callable(data):
        yield from batches_of(data(), model, option, reading)
    elif isinstance(data, Iterable):
        yield from _of_iterable(data, model)
    else:
        raise InputError(
            f"cannot take data from a {type(data).__name__}: give a path, a mapping from names to arrays, an iterable "
            "of mappings, or a function that returns one of these"
        )


def _of_iterable(data: Iterable[Any], model: ir.Model) -> Iterator[dict[str, np.ndarray]]:
    """One batch an item; the rows of a data set, which have no batch axis, become batches of one."""
    for number, item in enumerate(data):
        if number == MOST_BATCHES:
            raise InputError(f"the data has more than {MOST_BATCHES} items, or no end: give the first of them alone")
        what = f"item {number} of the data"
        if isinstance(item, Sequence | np.ndarray) and len(input_values(model)) == 1 and not isinstance(item, str):
            item = {name_of(input_values(model)[0]): item}  # a list of arrays, where the graph has one input
        if not isinstance(item, Mapping):
            raise InputError(f"{what} is a {type(item).__name__}, not a mapping from the names of inputs to arrays")
        yield _with_batch_axis(_checked(item, model, what), model)


def _with_batch_axis(arrays: dict[str, np.ndarray], model: ir.Model) -> dict[str, np.ndarray]:
    ranks = {name_of(v): len(v.shape) for v in input_values(model) if v.shape is not None}
    if any(isinstance(array, list) for array in arrays.values()):
        return arrays  # a sequence of tensors
    short = [name for name, array in arrays.items() if name in ranks and array.ndim == ranks[name] - 1]
    return {name: array[None] for name, array in arrays.items()} if len(short) == len(arrays) else arrays


# -- files -----------------------------------------------------------------------------------------------------------


def _of_path(path: Path, model: ir.Model, option: str, reading: Reading) -> Iterator[dict[str, np.ndarray]]:
    if not path.exists():
        raise InputError(f"there is no data at '{path}', which {option} names")
    files = _of_one_kind(path, option, reading) if path.is_dir() else [path]
    if files[0].suffix.lower() in IMAGE_FILES:
        yield from _cut(model, _checked(image_arrays(files, input_values(model), reading), model, f"'{path}'"))
        return
    for file in files:
        yield from _cut(model, _read(file, model, reading))


def _of_one_kind(folder: Path, option: str, reading: Reading) -> list[Path]:
    """The files of a folder that hold data: those of the kind that something is said of, else arrays before others."""
    said = {TEXT_FILES: reading.tokenizer, IMAGE_FILES: reading.preprocessing}
    for kind in sorted((_ARRAYS, IMAGE_FILES, TEXT_FILES), key=lambda kind: said.get(kind) is None):
        if found := sorted(file for file in folder.iterdir() if file.suffix.lower() in kind):
            return found
    kinds = f"{', '.join(_ARRAYS)} or {' or '.join(TEXT_FILES)}"
    raise InputError(f"the folder '{folder}', which {option} names, has no {kinds} files and no images")


def _read(file: Path, model: ir.Model, reading: Reading) -> dict[str, np.ndarray]:
    """The arrays of a file, checked against the graph's inputs."""
    if file.suffix in TEXT_FILES:
        found: Mapping[str, Any] = text_arrays(file, input_values(model), reading)
    elif file.suffix == ".npy":
        values = input_values(model)
        if len(values) != 1:
            raise InputError(f"'{file}' holds one array, but the model takes {describe_inputs(model)}: write an .npz")
        try:
            found = {name_of(values[0]): np.load(file, allow_pickle=False)}
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"'{file}' is not a readable .npy file") from error
    elif file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            found = load_file(file)
        except (OSError, SafetensorError) as error:
            raise InputError(f"'{file}' is not a readable .safetensors file") from error
    else:
        found = read_arrays(file)
    return _checked(found, model, f"'{file}'")


# -- checks ----------------------------------------------------------------------------------------------------------


def _checked(arrays: Mapping[str, Any], model: ir.Model, what: str) -> dict[str, np.ndarray]:
    """Arrays of the graph's names and types.

    Raises:
        InputError: if names differ, an array cannot be of the type that the graph reads, or holds no numbers.
    """
    values = {name_of(value): value for value in input_values(model)}
    found = gathered(arrays, [name for name, value in values.items() if is_sequence(value)])
    made = {name: _value(item, values.get(name)) for name, item in found.items()}
    try:
        check_names(made, list(values))
    except InputError as error:
        raise InputError(str(error) if what == "the data" else f"{what}: {error}") from error
    if made and not any(array.size for array in tensors(made).values()):  # an empty one may be a past without length
        raise InputError(f"{what} is empty: none of its arrays holds a value")
    return {name: _typed_value(item, values[name], what) for name, item in made.items()}


def _value(item: Any, value: ir.Value | None) -> Any:
    """An array, or a list of arrays for a sequence."""
    return [_array(element) for element in item] if value is not None and is_sequence(value) else _array(item)


def _typed_value(item: Any, value: ir.Value, what: str) -> Any:
    return [_typed(e, value, what) for e in item] if isinstance(item, list) else _typed(item, value, what)


def _array(item: Any) -> np.ndarray:
    """An array of what has one: tensors of torch too."""
    if hasattr(item, "detach"):
        item = item.detach().cpu()
        return item.float().numpy() if str(item.dtype) == "torch.bfloat16" else item.numpy()
    try:
        return np.asarray(item)
    except ValueError:  # rows of several lengths
        rows = np.empty(len(item), object)
        rows[:] = [np.asarray(row) for row in item]
        return rows


def _typed(array: np.ndarray, value: ir.Value, what: str) -> np.ndarray:
    if array.dtype == object:
        return np.array([None, *(_typed(np.asarray(row), value, what) for row in array)], object)[1:]
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise InputError(f"{what}: '{value.name}' holds NaN or infinity")
    wanted = array.dtype if value.dtype is None else value.dtype.numpy()
    if array.dtype != wanted and not np.can_cast(array.dtype, wanted, "same_kind"):
        raise InputError(f"{what}: '{value.name}' is {array.dtype}, but the model reads {wanted}")
    typed = array.astype(wanted, copy=False)
    if np.issubdtype(wanted, np.integer) and not np.array_equal(typed, array):
        raise InputError(f"{what}: '{value.name}' holds numbers that are too large for {wanted}")
    return typed


def _cut(model: ir.Model, arrays: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Cut rows into batches: of the graph's fixed size, or of a few rows where it takes any number."""
    if any(isinstance(array, list) for array in arrays.values()):
        yield dict(arrays)  # a sequence of tensors has no rows
        return
    ragged = [name for name, array in arrays.items() if array.dtype == object]
    if ragged:
        counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{name} has {count}" for name, count in counts.items())
            raise InputError(f"rows of several lengths need as many of every input: {said}")
        for row in range(len(arrays[ragged[0]])):
            yield {name: array[row][None] if name in ragged else array[row : row + 1] for name, array in arrays.items()}
        return
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
    largest = max((math.prod(array.shape[1:]) for array in arrays.values() if array.ndim), default=1)
    return max(1, BATCH_ELEMENTS // max(largest, 1))
