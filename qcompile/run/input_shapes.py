"""Inputs in other sizes: what a batch holds, repeated or cut along the dimensions that a graph leaves open."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qcompile.errors import InputError, unknown
from qcompile.ir.required import name_of
from qcompile.run.sources import input_values

__all__ = ["in_sizes"]


def in_sizes(batch: Mapping[str, np.ndarray], model: ir.Model, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """A batch whose open dimensions have other sizes.

    Args:
        batch: inputs by name.
        model: the graph that takes them.
        sizes: by the name of a dimension, as ``qcompile inspect`` shows it.

    Raises:
        InputError: if no input has an open dimension of that name, or a size is none.
    """
    dims = {
        (name_of(value), axis): str(dim.value)
        for value in input_values(model) for axis, dim in enumerate(value.shape or ()) if not isinstance(dim, int)
    }  # fmt: skip
    for name, size in sizes.items():
        if name not in dims.values():
            raise InputError(unknown("dimension", name, sorted(set(dims.values()))))
        if size < 1:
            raise InputError(f"--shape {name}={size}: a size is 1 or more")
    found = dict(batch)
    for (name, axis), dim in dims.items():
        if dim in sizes and name in found:
            length = found[name].shape[axis]
            found[name] = found[name].take(np.arange(sizes[dim]) % max(length, 1), axis)
    return found
