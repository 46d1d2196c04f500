"""Sequences of tensors, and optional ones, as tensors under names of their own, and back: files hold tensors alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["elements", "gathered", "is_sequence", "tensors"]

_ELEMENT = re.compile(r"(.*)\[(\d+)\]")


def is_sequence(value: ir.Value) -> bool:
    """Whether a value is a sequence of tensors."""
    import onnx_ir as ir  # artifacts run where it is not installed

    kind = value.type.elem_type if isinstance(value.type, ir.OptionalType) else value.type
    return isinstance(kind, ir.SequenceType)


def tensors(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Values as tensors alone: elements of a sequence as ``name[0]``, nothing for an optional value without one."""
    return {name: np.asarray(value) for name, value in elements(values).items()}


def elements(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same, each as it is: an array, or a tensor of torch."""
    return {name: element for key, value in values.items() for name, element in _elements(key, value)}


def _elements(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list | tuple):
        for place, element in enumerate(value):
            yield from _elements(f"{name}[{place}]", element)
    elif value is not None:
        yield name, value


def gathered(arrays: Mapping[str, Any], sequences: Collection[str]) -> dict[str, Any]:
    """Values of which those sequences are lists; their elements are arrays named ``name[0]``, ``name[1]`` …"""
    found: dict[str, Any] = {name: list(item) if name in sequences else item for name, item in arrays.items()}
    for name in sorted(arrays, key=_place):
        place = _ELEMENT.fullmatch(name)
        if place is not None and place[1] in sequences:
            found.setdefault(place[1], []).append(found.pop(name))
    return found


def _place(name: str) -> int:
    place = _ELEMENT.fullmatch(name)
    return -1 if place is None else int(place[2])
