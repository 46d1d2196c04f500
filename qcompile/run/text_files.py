"""Data from a text: its tokens in windows of one length, and what a graph reads beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.errors import InputError, MissingExtraError, first_line
from qcompile.ir.required import name_of
from qcompile.run.reading import Reading

__all__ = ["TEXT_FILES", "text_arrays", "text_of"]

TEXT_FILES = (".txt",)

TOKENIZER = "tokenizer.json"

#: Tokens of a window where neither the graph nor the user says.
WINDOW = 512

#: Windows of a text; more would take hours and teach little.
MOST_WINDOWS = 4096

#: Values of a graph by a part of their name, from the windows ``[rows, length]`` that the tokenizer gives.
_BESIDE: dict[str, Callable[[Sequence[Any]], np.ndarray]] = {
    "attention_mask": lambda windows: np.array([window.attention_mask for window in windows]),
    "token_type_ids": lambda windows: np.array([window.type_ids for window in windows]),
    "position_ids": lambda windows: np.array([range(len(window.ids)) for window in windows]),
}


def text_arrays(file: Path, values: Sequence[ir.Value], reading: Reading) -> dict[str, np.ndarray]:
    """The arrays that a graph takes, one row for each window of a text; what is left behind the last is dropped.

    The values that hold the past of a decoder are empty.

    Args:
        values: the graph's inputs.

    Raises:
        InputError: if the tokenizer is missing, the text is too short or too long, or the graph reads something that a
            text does not give.
        MissingExtraError: if tokenizers is not installed.
    """
    if reading.tokenizer is None:
        raise InputError(f"'{file}' is a text: name the folder of its tokenizer with --tokenizer")
    ids = _ids(values)
    length = _length(ids, reading.window)
    windows = _windows(file, Path(reading.tokenizer), length)
    arrays = {name_of(ids): np.array([window.ids for window in windows])}
    for value in values:
        if value is not ids:
            arrays[name_of(value)] = _beside(value, windows, file)
    return arrays


def _ids(values: Sequence[ir.Value]) -> ir.Value:
    """The input that takes tokens: ``input_ids``, or the only one of integers."""
    whole = [value for value in values if value.dtype is not None and value.dtype.is_integer()]
    named = [value for value in whole if "input_ids" in name_of(value)] or whole
    if len(named) != 1 or named[0].shape is None or len(named[0].shape) != 2:
        said = ", ".join(f"'{name_of(value)}'" for value in values)
        raise InputError(f"a text gives one input of tokens by rows, and the model takes {said}: write an .npz")
    return named[0]


def _length(ids: ir.Value, wanted: int | None) -> int:
    assert ids.shape is not None  # as ``_ids`` saw
    fixed = ids.shape[1]
    if isinstance(fixed, int):
        if wanted not in (None, fixed):
            raise InputError(f"the model reads windows of {fixed} tokens, not of {wanted}")
        return fixed
    if wanted is not None and wanted < 2:
        raise InputError(f"a window of {wanted} tokens has no context")
    return wanted or WINDOW


def _windows(file: Path, folder: Path, length: int) -> list[Any]:
    """A text in windows, each with the tokens that the tokenizer puts around a text."""
    tokenizer = _tokenizer(folder, "reading a text")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"'{file}' is no text in UTF-8") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    first = tokenizer.encode(text)
    found = [first, *first.overflowing]
    whole = [window for window in found if len(window.ids) == length]
    if not whole:
        raise InputError(f"'{file}' has {len(first.ids)} tokens, fewer than one window of {length}: see --window")
    if len(whole) > MOST_WINDOWS:
        raise InputError(f"'{file}' makes {len(whole)} windows of {length} tokens: give {MOST_WINDOWS} of them at most")
    return whole


def text_of(folder: str | Path) -> Callable[[Sequence[int]], str]:
    """The function from tokens to text that a tokenizer stands for.

    Args:
        folder: that of the tokenizer, or its ``tokenizer.json``.
    """
    tokenizer = _tokenizer(Path(folder), "showing tokens as text")
    return lambda ids: str(tokenizer.decode([int(i) for i in ids], skip_special_tokens=False))


def _tokenizer(folder: Path, purpose: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError(purpose, "text") from error
    path = folder / TOKENIZER if folder.is_dir() else folder
    if not path.is_file():
        raise InputError(f"there is no {TOKENIZER} at '{folder}': save_pretrained of a fast tokenizer writes one")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more exact
        raise InputError(f"'{path}' is not a readable tokenizer: {first_line(error)}") from error


def _beside(value: ir.Value, windows: Sequence[Any], file: Path) -> np.ndarray:
    """An input that follows from the windows, or an empty past."""
    name, shape = name_of(value), value.shape
    for part, make in _BESIDE.items():
        if part in name:
            return make(windows)
    if "past" in name and shape is not None and any(not isinstance(dim, int) for dim in shape[1:]):
        dims = [dim if isinstance(dim, int) else 0 for dim in shape[1:]]
        kind = np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()
        return np.zeros([len(windows), *dims], kind)
    raise InputError(f"the model reads '{name}', which '{file}' does not give: write an .npz with all of its inputs")
