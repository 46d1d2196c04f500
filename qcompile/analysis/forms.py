"""Sites as they stand in the graph, in three forms.

A lookup of rows, a product ``after(alpha · before(x) Wᵀ + beta · bias)`` with a matrix, and products with matrices out
of a stack, which their own operator computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeGuard

import numpy as np
import onnx_ir as ir

from qcompile.analysis.folding import lines
from qcompile.analysis.rules.einsum import read_letters, weight_letters
from qcompile.analysis.rules.linear import weight_of
from qcompile.analysis.spaces import Site
from qcompile.errors import TargetError
from qcompile.ir.required import constant, operand, operands, optional, producer_of, rank_of, shape_of
from qcompile.ir.tensors import Derived, on_device, read, release
from qcompile.ir.text import refusal

if TYPE_CHECKING:
    import torch

__all__ = ["Linear", "Lookup", "Stack", "as_weight", "laid_out", "read_site", "weight_matrix"]


@dataclass(frozen=True)
class Lookup:
    """A Gather of rows.

    Args:
        node: the operator.
        weight: the table.
        indices: which rows.
    """

    node: ir.Node
    weight: ir.Value
    indices: ir.Value
    axis: ClassVar[int] = 1


@dataclass(frozen=True)
class Linear:
    """A product with a constant matrix.

    Args:
        node: the operator.
        weight: the matrix, in the operator's own layout.
        x: what it reads.
        axis: the axis of ``weight`` that is contracted.
        before: a permutation of the axes of ``x`` that puts the contracted one last, or ``None``.
        after: a permutation of the axes of the result, or ``None``.
        bias: added, scaled by ``beta``.
    """

    node: ir.Node
    weight: ir.Value
    x: ir.Value
    axis: int
    before: tuple[int, ...] | None = None
    after: tuple[int, ...] | None = None
    alpha: float = 1.0
    beta: float = 1.0
    bias: ir.Value | None = None

    @property
    def rank(self) -> int:
        """Axes of ``x``."""
        return rank_of(self.x)


@dataclass(frozen=True)
class Stack:
    """Products with the matrices of a stack: one for each expert, or those that are looked up for each token.

    Args:
        node: the operator that multiplies.
        weight: the stack, of any number of axes.
        reader: the operator that reads it: ``node`` itself, or a lookup in front of it.
        x: what it reads, its features last.
        axis: the axis of ``weight`` that is contracted.
    """

    node: ir.Node
    weight: ir.Value
    reader: ir.Node
    x: ir.Value
    axis: int
    before: ClassVar[None] = None

    @property
    def rank(self) -> int:
        """Axes of ``x``."""
        return rank_of(self.x)


def read_site(node: ir.Node) -> Linear | Lookup | Stack:
    """The node in that form.

    Raises:
        TargetError: if it cannot be put so.
    """
    reader = _READERS.get((node.domain, node.op_type))
    if reader is None:
        raise _refuse(node, "is no MatMul, Gemm, Einsum, 1x1 Conv or Gather")
    return reader(node)


def _input(node: ir.Node, x: ir.Value) -> ir.Value:
    if x.shape is None or x.shape.rank() == 0:
        raise _refuse(node, f"reads '{x.name}', whose rank is not known")
    return x


def _refuse(node: ir.Node, reason: str) -> TargetError:
    return refusal(TargetError, "site '{name}' ({op}) cannot be lowered: it {reason}", node, reason=reason)


def _constant(value: ir.Value | None) -> TypeGuard[ir.Value]:
    return value is not None and value.const_value is not None


def _swapped(node: ir.Node, value: ir.Value) -> tuple[int, ...]:
    """The permutation that swaps the last two axes."""
    rank = rank_of(value)
    if rank < 2:
        raise _refuse(node, f"reads the vector '{value.name}'")
    return (*range(rank - 2), rank - 1, rank - 2)


def _stack(node: ir.Node, index: int, axis: int) -> Stack:
    """The site whose weight, or what is looked up in it, is that operand; ``axis`` is counted from its end."""
    value, x = operand(node, index), operand(node, 1 - index)
    weight = weight_of(value)
    if weight is None:
        raise _refuse(node, "has no constant operand")
    reader = node if value is weight else producer_of(value)
    return Stack(node, weight, reader, _input(node, x), rank_of(weight) + axis)


def _stacked(value: ir.Value) -> bool:
    """Whether a value is a stack of weights, or what is looked up in one."""
    weight = weight_of(value)
    return weight is not None and (weight is not value or any(dim != 1 for dim in shape_of(weight)[:-2]))


def _einsum(node: ir.Node) -> Stack:
    terms, output = read_letters(node)
    found = weight_letters(node, terms, output)
    if found is None:
        raise _refuse(node, "has no constant operand, or one that it only weighs its input with")
    index, letter, _ = found
    return _stack(node, index, terms[index].index(letter) - len(terms[index]))


def _matmul(node: ir.Node) -> Linear | Stack:
    left, right = operands(node)
    for index, (one, other) in enumerate(((left, right), (right, left))):
        if _stacked(one) and not _constant(other):
            return _stack(node, index, -2 if index else -1)
    if _constant(right):
        _check_rank(node, right, _input(node, left))
        return Linear(node, right, left, rank_of(right) - 2)
    if not _constant(left):
        raise _refuse(node, "has no constant operand")
    _check_rank(node, left, _input(node, right))
    swap = _swapped(node, right)
    return Linear(node, left, right, rank_of(left) - 1, before=swap, after=swap)


def _check_rank(node: ir.Node, weight: ir.Value, x: ir.Value) -> None:
    rank = rank_of(weight)
    if rank == 2:
        return
    if rank_of(x) < rank:
        raise _refuse(node, "has a weight of more axes than its input")


def _gemm(node: ir.Node) -> Linear:
    x, weight, bias = operand(node, 0), operand(node, 1), optional(node, 2)
    if not _constant(weight):
        raise _refuse(node, "has no constant right operand")
    before = (1, 0) if node.attributes.get_int("transA", 0) else None
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    axis = 1 if node.attributes.get_int("transB", 0) else 0
    return Linear(node, weight, _input(node, x), axis, before=before, alpha=alpha, beta=beta, bias=bias)


def _conv(node: ir.Node) -> Linear:
    x, weight, bias = operand(node, 0), operand(node, 1), optional(node, 2)
    rank = rank_of(weight)
    if not _constant(weight) or any(dim != 1 for dim in shape_of(weight)[2:]):
        raise _refuse(node, "has a kernel larger than 1, or none that is constant")
    strides, pads = node.attributes.get_ints("strides", ()), node.attributes.get_ints("pads", ())
    if node.attributes.get_int("group", 1) != 1 or any(s != 1 for s in strides) or any(pads):
        raise _refuse(node, "has groups, strides or padding")
    before, after = (0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))
    return Linear(node, weight, _input(node, x), 1, before=before, after=after, bias=bias)


def _gather(node: ir.Node) -> Lookup:
    table, indices = operands(node)
    if not _constant(table) or rank_of(table) != 2 or node.attributes.get_int("axis", 0) != 0:
        raise _refuse(node, "does not look up rows of a constant matrix")
    return Lookup(node, table, indices)


_READERS: dict[tuple[str, str], Callable[[ir.Node], Linear | Lookup | Stack]] = {
    ("", "Einsum"): _einsum,
    ("", "MatMul"): _matmul,
    ("", "Gemm"): _gemm,
    ("", "Conv"): _conv,
    ("", "Gather"): _gather,
}


def weight_matrix(site: Site, rows: int | None = None, device: str = "cpu") -> torch.Tensor:
    """A site's weight as ``[out, in]`` float32, or that many of its rows; an embedding table as ``[rows, features]``.

    The matrices of a stack stand one below the other. The result need not be contiguous.

    Args:
        device: where the result is; on a GPU a whole weight is computed there.
    """
    import torch

    tensor, axis = constant(site.weight), site.axis_out if site.input is None else site.axis_in
    count = math.prod(site.shape) // site.shape[axis]
    if device != "cpu" and rows is None:
        moved = on_device(tensor, torch.device(device)).movedim(axis, -1)
        return moved.reshape(-1, moved.shape[-1]).float()
    if device != "cpu":
        return weight_matrix(site, rows).to(device)
    if rows is not None and rows < count:
        weight = lines(tensor, axis, np.linspace(0, count - 1, rows).astype(int))
    else:
        weight = np.moveaxis(read(tensor), axis, -1)
    weight = weight.reshape(-1, weight.shape[-1])
    if isinstance(tensor, Derived) and weight.dtype == np.float32 and weight.flags.writeable:  # torch takes no other
        return torch.from_numpy(weight)
    copied = np.array(weight, np.float32)
    del weight
    release(tensor)
    return torch.from_numpy(copied)


def as_weight(site: Site, matrix: np.ndarray) -> np.ndarray:
    """A result of ``weight_matrix`` in the shape and the type of the weight."""
    import torch

    axis = site.axis_out if site.input is None else site.axis_in
    laid = laid_out(torch.from_numpy(matrix), site.shape, axis).numpy()
    return np.ascontiguousarray(laid, constant(site.weight).dtype.numpy())


def laid_out(matrix: torch.Tensor, shape: Sequence[int], axis: int) -> torch.Tensor:
    """A matrix ``[out, in]`` as the weight of that shape whose axis ``in`` is."""
    kept = list(shape)
    kept.append(kept.pop(axis))
    return matrix.reshape(kept).movedim(-1, axis)
