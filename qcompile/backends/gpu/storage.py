"""Writes tensors as a safetensors file whose bytes depend on its content alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

__all__ = ["Source", "write_safetensors"]

#: The tensor, made when it is written: a large model is never held whole.
Source = Callable[[], np.ndarray]

_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def write_safetensors(path: Path, tensors: Mapping[str, tuple[np.dtype, tuple[int, ...], Source]]) -> None:
    """Tensors in the order of their names, 16-byte aligned where their sizes allow, behind a sorted header.

    Args:
        tensors: by name: dtype, shape, and where the content comes from.
    """
    header, offset = {}, 0
    ordered = sorted(tensors, key=lambda name: (-np.dtype(tensors[name][0]).itemsize, name))
    for name in ordered:
        dtype, shape, _ = tensors[name]
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        place = [offset, offset + size]
        header[name] = {"dtype": _NAMES[np.dtype(dtype).name], "shape": list(shape), "data_offsets": place}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 16 + 8)  # with the eight bytes of the length, the data start at a multiple of 16
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in ordered:
            file.write(np.ascontiguousarray(tensors[name][2]()).reshape(-1).view(np.uint8).data)
