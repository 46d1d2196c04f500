"""Sites as they stand in the graph, in four forms.

A lookup of rows, a product ``after(alpha · before(x) Wᵀ + beta · bias)`` with a matrix, products with matrices out of a
stack, which their own operator computes, and convolutions, which are products with the patches of what they read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeGuard

import onnx_ir as ir

from qcompile.analysis.matrices import Layout, kernel_layout, layout_along
from qcompile.analysis.patches import Patches, patches_of
from qcompile.analysis.rules.einsum import read_letters, weight_letters
from qcompile.analysis.rules.linear import weight_of
from qcompile.errors import TargetError
from qcompile.ir.required import operand, operands, optional, producer_of, rank_of, shape_of, sizes_of
from qcompile.ir.text import refusal

__all__ = ["Convolution", "Form", "Linear", "Lookup", "Stack", "read_convolution", "read_site"]


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

    @property
    def layout(self) -> Layout:
        """How the table is a matrix."""
        return layout_along(sizes_of(self.weight), 1)


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

    @property
    def features(self) -> int:
        """The axis of ``x`` that is contracted."""
        return -1 if self.before is None else self.before[-1]

    @property
    def layout(self) -> Layout:
        """How the weight is ``[out, in]``."""
        return layout_along(sizes_of(self.weight), self.axis)


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
    features: ClassVar[int] = -1

    @property
    def rank(self) -> int:
        """Axes of ``x``."""
        return rank_of(self.x)

    @property
    def layout(self) -> Layout:
        """How the stack is ``[out, in]``, its matrices one below the other."""
        return layout_along(sizes_of(self.weight), self.axis)


@dataclass(frozen=True)
class Convolution:
    """A product of a kernel ``[out, taps · in / groups]`` with every patch of what it reads.

    Where its input is rounded, that is done at each place along its channels, before there are patches: all that cover
    a place see the same of it, and the zeros around stay zeros.

    Args:
        node: the operator.
        weight: the kernel, as the operator has it.
        x: what it reads, ``[samples, channels, *places]``.
        patches: of it.
        bias: added to each channel.
    """

    node: ir.Node
    weight: ir.Value
    x: ir.Value
    patches: Patches
    bias: ir.Value | None = None
    features: ClassVar[int] = 1
    before: ClassVar[None] = None

    @property
    def rank(self) -> int:
        """Axes of ``x``."""
        return rank_of(self.x)

    @property
    def channels(self) -> int:
        """Channels of ``x``."""
        first, second, *_ = sizes_of(self.weight)
        return first if self.patches.transposed else second * self.patches.groups

    @property
    def layout(self) -> Layout:
        """How the kernel is a matrix."""
        return kernel_layout(sizes_of(self.weight), self.patches.groups, transposed=self.patches.transposed)


#: Every form that a site can have.
Form = Linear | Lookup | Stack | Convolution


def read_site(node: ir.Node) -> Form:
    """The node in that form.

    Raises:
        TargetError: if it cannot be put so.
    """
    reader = _READERS.get((node.domain, node.op_type))
    if reader is None:
        raise _refuse(node, "is no MatMul, Gemm, Einsum, convolution or Gather")
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


def read_convolution(node: ir.Node) -> Convolution:
    """A convolution as such, though it may be a product with a matrix at each place.

    Raises:
        TargetError: if its kernel is no constant.
    """
    weight = operand(node, 1)
    if not _constant(weight):
        raise _refuse(node, "has no constant kernel")
    return Convolution(node, weight, _input(node, operand(node, 0)), patches_of(node), optional(node, 2))


def _conv(node: ir.Node) -> Linear | Convolution:
    form = read_convolution(node)
    if not form.patches.plain:
        return form
    rank = rank_of(form.weight)
    before, after = (0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))
    return Linear(node, form.weight, form.x, 1, before=before, after=after, bias=form.bias)


def _gather(node: ir.Node) -> Lookup:
    table, indices = operands(node)
    if not _constant(table) or rank_of(table) != 2 or node.attributes.get_int("axis", 0) != 0:
        raise _refuse(node, "does not look up rows of a constant matrix")
    return Lookup(node, table, indices)


_READERS: dict[tuple[str, str], Callable[[ir.Node], Form]] = {
    ("", "Einsum"): _einsum,
    ("", "MatMul"): _matmul,
    ("", "Gemm"): _gemm,
    ("", "Conv"): _conv,
    ("", "ConvTranspose"): _conv,
    ("", "Gather"): _gather,
}
