"""Folds transforms into constants: along every axis that a constant shares with a transformed space.

Arithmetic is in float64; the result is stored in the constant's own type. Constants of large models are computed
when they are read, so that a model larger than memory streams through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompile.axes import Axes, Mode, Node, Ref, Structure
from qcompile.errors import InputError
from qcompile.graph import release
from qcompile.spaces import Analysis, is_float

if TYPE_CHECKING:
    from qcompile.transforms import Transform

__all__ = ["axis_transform", "fold", "rescale", "rewrite", "transform_axes"]

#: Below this many bytes of constants, folded ones are kept in memory.
EAGER_BYTES = 4 << 30

_BYTES = "qcompile.bytes"

#: Elements that are transformed at a time: in float64 they should stay in a cache.
PIECE = 1 << 18


def total_bytes(model: ir.Model) -> int:
    """Bytes of all constants when first asked; passes keep their number about the same."""
    if _BYTES not in model.meta:
        constants = (v.const_value for v in model.graph.initializers.values())
        model.meta[_BYTES] = sum(tensor.nbytes for tensor in constants if tensor is not None)
    return model.meta[_BYTES]


def rewrite(model: ir.Model, value: ir.Value, function: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace a constant by ``function`` of its content in float64, keeping shape and type."""
    _replace(model, value, lambda array: function(array.astype(np.float64)))


def rescale(model: ir.Model, value: ir.Value, factor: np.ndarray) -> None:
    """Multiply a constant by float64 factors that broadcast against it: in float64, without a copy in that type."""

    def scaled(array: np.ndarray) -> np.ndarray:
        if array.dtype != np.float32:
            return array.astype(np.float64) * factor
        return np.multiply(array, factor, out=np.empty_like(array), casting="same_kind", dtype=np.float64)

    _replace(model, value, scaled)


def _replace(model: ir.Model, value: ir.Value, function: Callable[[np.ndarray], np.ndarray]) -> None:
    source, name = value.const_value, value.name

    def compute() -> ir.Tensor:
        array = np.ascontiguousarray(function(source.numpy()))
        result = ir.tensor(array.astype(source.dtype.numpy(), copy=False), name=name)
        release(source)
        return result

    if total_bytes(model) < EAGER_BYTES:
        value.const_value = compute()
    else:
        value.const_value = ir.LazyTensor(compute, dtype=source.dtype, shape=source.shape, name=name, cache=False)


def axis_transform(axes: Axes, ref: Ref, chosen: Mapping[Node, Transform]) -> Transform | None:
    """The transform of a whole axis, from those of its leaves; ``None`` if nothing on it changes."""
    from qcompile.transforms import DirectSum, Identity, Kronecker

    root = axes.find(ref)
    if root.node.structure is Structure.LEAF:
        found = chosen.get(root.node)
        return None if found is None else through(found, root.mode)
    children = axes.children(root)
    parts = [axis_transform(axes, child, chosen) for child in children]
    if all(part is None for part in parts):
        return None
    sizes = [axes.size(child) for child in children]
    parts = [part or Identity(size) for part, size in zip(parts, sizes, strict=True)]
    if root.node.structure is Structure.SUM:
        return DirectSum(tuple(parts))
    result = parts[-1]
    for part in reversed(parts[:-1]):
        result = Kronecker(part, result)
    return result


def through(transform: Transform, mode: Mode) -> Transform | None:
    """A node's transform as an axis with that mode carries it."""
    if mode is Mode.DUAL:
        return transform.dual()
    return permutation_part(transform) if mode is Mode.PLAIN else transform


def permutation_part(transform: Transform) -> Transform | None:
    """``P`` of a monomial transform ``P·D``, ``None`` if it is the identity.

    Raises:
        InputError: if the transform is not written as permutations and diagonals.
    """
    from qcompile.transforms import Compose, Diagonal, Identity, Permutation

    if isinstance(transform, Permutation):
        return transform
    if isinstance(transform, Diagonal | Identity):
        return None
    if isinstance(transform, Compose):
        parts = [part for part in map(permutation_part, transform.parts) if part is not None]
        return Compose(tuple(parts)) if parts else None
    raise InputError(f"a transform of kind '{transform.kind}' cannot pass a product of two activations")


def fold(analysis: Analysis, chosen: Mapping[Node, Transform]) -> int:
    """Transform every constant that has an axis in a transformed space; returns how many changed."""
    changed = 0
    for value, refs in list(analysis.refs_of.items()):
        if value.const_value is None or refs is None or not is_float(value):
            continue
        parts = [(axis, axis_transform(analysis.axes, ref, chosen)) for axis, ref in enumerate(refs)]
        parts = [(axis, part) for axis, part in parts if part is not None]
        if parts:
            transform_axes(analysis.model, value, parts)
        changed += bool(parts)
    return changed


def transform_axes(model: ir.Model, value: ir.Value, parts: Sequence[tuple[int, Transform]]) -> None:
    """Replace a constant by itself with its axes transformed, in float64."""
    if len(parts) == 1 and len(value.const_value.shape) == 2:
        _replace(model, value, lambda array: _apply_in_pieces(array, *parts[0]))
    else:
        rewrite(model, value, lambda array: _apply(array, parts))


def _apply(array: np.ndarray, parts: Sequence[tuple[int, Transform]]) -> np.ndarray:
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array))
    for axis, transform in parts:
        tensor = transform.apply(tensor, axis)
    return tensor.numpy()


def _apply_in_pieces(array: np.ndarray, axis: int, transform: Transform) -> np.ndarray:
    """Transform one axis of a matrix, a few rows or columns at a time: a table would be large in float64."""
    out = np.empty(array.shape, array.dtype)
    step = max(1, PIECE // array.shape[axis])
    for start in range(0, array.shape[1 - axis], step):
        piece = np.s_[:, start : start + step] if axis == 0 else np.s_[start : start + step]
        out[piece] = _apply(array[piece].astype(np.float64), [(axis, transform)])
    return out
