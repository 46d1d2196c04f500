"""Weights as matrices ``[out, in]``, and back: every form of site has one layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qcompile.analysis.folding import lines
from qcompile.analysis.patches import is_convolution, patches_of
from qcompile.analysis.spaces import Site
from qcompile.ir.required import constant
from qcompile.ir.tensors import Derived, on_device, read, release

if TYPE_CHECKING:
    import torch

__all__ = ["Layout", "as_weight", "kernel_layout", "layout_along", "layout_of", "weight_matrix"]


@dataclass(frozen=True)
class Layout:
    """The way in which a weight is a matrix.

    Args:
        shape: of the weight.
        parts: its shape with axes cut in two where rows take one part of them, and columns the other.
        order: of the axes of ``parts``, those of rows first.
        rows: how many of them are those of rows.
    """

    shape: tuple[int, ...]
    parts: tuple[int, ...]
    order: tuple[int, ...]
    rows: int

    @property
    def ordered(self) -> tuple[int, ...]:
        """The shape of the matrix with all axes of the weight apart."""
        return tuple(self.parts[axis] for axis in self.order)

    @property
    def back(self) -> tuple[int, ...]:
        """The order in which these axes are those of ``parts``."""
        return tuple(self.order.index(axis) for axis in range(len(self.order)))

    @property
    def columns(self) -> int:
        """Columns of the matrix."""
        return math.prod(self.ordered[self.rows :])

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight as its matrix, which need not be contiguous."""
        return weight.reshape(self.parts).permute(self.order).reshape(-1, self.columns)

    def weight(self, matrix: torch.Tensor) -> torch.Tensor:
        """A matrix as the weight, which need not be contiguous."""
        return matrix.reshape(self.ordered).permute(self.back).reshape(self.shape)


def layout_along(shape: Sequence[int], axis: int) -> Layout:
    """The layout of a weight that is contracted along one axis; matrices of a stack stand one below the other."""
    order = (*(i for i in range(len(shape)) if i != axis), axis)
    return Layout(tuple(shape), tuple(shape), order, len(shape) - 1)


def kernel_layout(shape: Sequence[int], groups: int, *, transposed: bool) -> Layout:
    """The layout of a kernel: ``[out, taps · in / groups]``, the channels of a tap together."""
    shape = tuple(shape)
    taps = range(2, len(shape))
    if not transposed:
        return Layout(shape, shape, (0, *taps, 1), 1)
    parts = (groups, shape[0] // groups, *shape[1:])  # [groups, in / groups, out / groups, *taps]
    return Layout(shape, parts, (0, 2, *(1 + tap for tap in taps), 1), 2)


def layout_of(site: Site) -> Layout:
    """The layout of a site's weight; an embedding table is ``[rows, features]``."""
    if is_convolution(site.node):
        own = patches_of(site.node)
        return kernel_layout(site.shape, own.groups, transposed=own.transposed)
    return layout_along(site.shape, site.axis_out if site.input is None else site.axis_in)


def weight_matrix(site: Site, rows: int | None = None, device: str = "cpu") -> torch.Tensor:
    """A site's weight as ``[out, in]`` float32, or that many of its rows; an embedding table as ``[rows, features]``.

    The matrices of a stack stand one below the other. The result need not be contiguous.

    Args:
        device: where the result is; on a GPU a whole weight is computed there.
    """
    import torch

    tensor, layout = constant(site.weight), layout_of(site)
    count = math.prod(site.shape) // layout.columns
    if device != "cpu" and rows is None:
        return layout.matrix(on_device(tensor, torch.device(device))).float()
    if device != "cpu":
        return weight_matrix(site, rows).to(device)
    along = layout.rows == len(layout.order) - 1 and layout.parts == layout.shape
    if rows is not None and rows < count and along:
        weight = lines(tensor, layout.order[-1], np.linspace(0, count - 1, rows).astype(int))
        weight = weight.reshape(-1, layout.columns)
    else:
        weight = read(tensor).reshape(layout.parts).transpose(layout.order).reshape(-1, layout.columns)
        if rows is not None and rows < count:
            weight = weight[np.linspace(0, count - 1, rows).astype(int)]
    if isinstance(tensor, Derived) and weight.dtype == np.float32 and weight.flags.writeable:  # torch takes no other
        return torch.from_numpy(weight)
    copied = np.array(weight, np.float32)
    del weight
    release(tensor)
    return torch.from_numpy(copied)


def as_weight(site: Site, matrix: np.ndarray) -> np.ndarray:
    """A result of ``weight_matrix`` in the shape and the type of the weight."""
    import torch

    laid = layout_of(site).weight(torch.from_numpy(matrix)).numpy()
    return np.ascontiguousarray(laid, constant(site.weight).dtype.numpy())
