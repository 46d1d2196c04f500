"""Folds transforms into constants: along every axis that a constant shares with a transformed space.

Arithmetic is in float64; the result is stored in the constant's own type. It is computed when it is read, and for
large models at every read, so that a model larger than memory streams through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompile.analysis.axes import Axes, AxisNode, Mode, Ref, Structure, complete
from qcompile.analysis.spaces import Analysis
from qcompile.errors import InputError, InternalError
from qcompile.ir.graph import is_float
from qcompile.ir.required import constant
from qcompile.ir.tensors import EAGER_BYTES, Derived, on_device, read, release, total_bytes

if TYPE_CHECKING:
    import torch

    from qcompile.transforms import Transform

    Change = tuple[int, Transform | np.ndarray]

__all__ = ["Folded", "axis_transform", "change_axes", "fold", "lines", "rewrite"]

#: Elements that are transformed at a time: in float64 they should stay in a cache.
PIECE = 1 << 18


class Folded(Derived):
    """A constant with some of its axes changed: computed in float64 and rounded once, when it is first read.

    What is folded into one that nobody has read yet is added to its changes: a scale and a rotation are one walk.

    Args:
        source: the constant as it was.
        changes: an axis, and the transform of it or float64 factors along it, in order.
        keep: whether the result stays in memory; without, it is computed again at each read.
    """

    def __init__(self, source: ir.TensorProtocol, changes: Sequence[Change], *, name: str | None, keep: bool) -> None:
        super().__init__(source, partial(_changed, changes=changes), source.shape, name=name, keep=keep)
        self._changes = tuple(changes)

    def then(self, changes: Sequence[Change]) -> Folded:
        """The constant with further changes."""
        if self._tensor is None:
            return Folded(self.source, (*self._changes, *changes), name=self.name, keep=self.cache)
        made = Folded(self._tensor, changes, name=self.name, keep=self.cache)
        made.origin = self.origin
        return made

    def scale(self, axis: int) -> np.ndarray | None:
        """The float64 factors along an axis, if they are all that was changed of the source."""
        factors = [change for changed, change in self._changes if changed == axis and isinstance(change, np.ndarray)]
        return np.prod(factors, axis=0) if len(factors) == len(self._changes) else None

    def on(self, device: torch.device) -> torch.Tensor:
        """The constant as a tensor of torch; on a GPU it is computed there."""
        if self._tensor is not None or device.type == "cpu":
            return super().on(device)
        source = on_device(self.source, device)
        wide = source.double()
        _change(wide, self._changes)
        return wide.to(source.dtype)

    def lines(self, axis: int, places: np.ndarray) -> np.ndarray:
        """Some of the vectors along an axis, ``[places, size]``, if possible without computing the others."""
        if self._tensor is not None or any(changed != axis for changed, _ in self._changes):
            return lines(self._evaluate(), axis, places)
        import torch

        result = lines(self.source, axis, places).astype(np.float64)
        _change(torch.from_numpy(result), [(1, change) for _, change in self._changes])
        return result.astype(self.dtype.numpy())


def _changed(source: ir.TensorProtocol, changes: Sequence[Change]) -> ir.TensorProtocol:
    import torch

    array = read(source)
    axes = {axis for axis, _ in changes}
    if array.ndim == 2 and len(axes) == 1:
        result = _in_pieces(array, axes.pop(), changes)
    else:
        wide = array.astype(np.float64, order="C")
        _change(torch.from_numpy(wide), changes)
        result = wide.astype(array.dtype)
    del array  # pages are kept while it is there
    release(source)
    return ir.Tensor(result)


def lines(tensor: ir.TensorProtocol, axis: int, places: np.ndarray) -> np.ndarray:
    """Some of the vectors of a constant along an axis, ``[places, size]``: places count over the other axes."""
    if isinstance(tensor, Folded):
        return tensor.lines(axis, places)
    moved = np.moveaxis(read(tensor), axis, -1)
    found = moved[np.unravel_index(places, moved.shape[:-1])]
    del moved
    release(tensor)  # even a few of every weight touch most pages of a model
    return found


def _in_pieces(array: np.ndarray, axis: int, changes: Sequence[Change]) -> np.ndarray:
    """Change one axis of a matrix, a few rows or columns at a time: a table would be large in float64."""
    import torch

    out = np.empty(array.shape, array.dtype)
    step = max(1, PIECE // array.shape[axis])
    for start in range(0, array.shape[1 - axis], step):
        piece = np.s_[:, start : start + step] if axis == 0 else np.s_[start : start + step]
        wide = array[piece].astype(np.float64, order="C")
        _change(torch.from_numpy(wide), changes)
        out[piece] = wide
    return out


def _change(tensor: torch.Tensor, changes: Sequence[Change]) -> None:
    """Change axes of a contiguous float64 tensor in place."""
    import torch

    for axis, change in changes:
        if isinstance(change, np.ndarray):
            factors = torch.from_numpy(np.asarray(change, np.float64)).to(tensor.device)
            tensor *= factors.reshape([-1 if i == axis else 1 for i in range(tensor.ndim)])
        else:
            change.apply_(tensor, axis)


def rewrite(model: ir.Model, value: ir.Value, function: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace a constant by ``function`` of its content in float64, keeping shape and type."""
    source, name = constant(value), value.name

    def compute(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        array = np.ascontiguousarray(function(read(tensor).astype(np.float64)))
        release(tensor)
        return ir.tensor(array.astype(tensor.dtype.numpy(), copy=False), name=name)

    value.const_value = Derived(source, compute, source.shape, name=name, keep=_fits(model))


def _fits(model: ir.Model) -> bool:
    return total_bytes(model) < EAGER_BYTES


def change_axes(model: ir.Model, value: ir.Value, changes: Sequence[Change]) -> None:
    """Replace a constant by itself with axes changed, in order, in float64."""
    source = constant(value)
    if isinstance(source, Folded):
        value.const_value = source.then(changes)
    else:
        value.const_value = Folded(source, changes, name=value.name, keep=_fits(model))


def axis_transform(axes: Axes, ref: Ref, chosen: Mapping[AxisNode, Transform]) -> Transform | None:
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
    sizes = complete(axes.size(child) for child in children)
    if sizes is None:
        raise InternalError("an axis of unknown size changes basis")
    whole = [part or Identity(size) for part, size in zip(parts, sizes, strict=True)]
    if root.node.structure is Structure.SUM:
        return DirectSum(tuple(whole))
    result = whole[-1]
    for part in reversed(whole[:-1]):
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


def fold(analysis: Analysis, chosen: Mapping[AxisNode, Transform]) -> int:
    """Transform every constant that has an axis in a transformed space; returns how many changed."""
    changed = 0
    for value, refs in list(analysis.refs_of.items()):
        if value.const_value is None or refs is None or not is_float(value):
            continue
        found = ((axis, axis_transform(analysis.axes, ref, chosen)) for axis, ref in enumerate(refs))
        parts = [(axis, part) for axis, part in found if part is not None]
        if parts:
            change_axes(analysis.model, value, parts)
        changed += bool(parts)
    return changed
