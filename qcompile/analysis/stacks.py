"""Products with stacks of matrices, read as products of rows with a matrix for each expert."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.analysis.forms import Stack
from qcompile.analysis.rules.einsum import read_letters
from qcompile.analysis.spaces import Site
from qcompile.errors import TargetError
from qcompile.formats import Quantized
from qcompile.ir.required import constant, operand, operands, rank_of, shape_of, sizes_of
from qcompile.ir.text import refusal

__all__ = ["Experts", "Route", "experts_of", "is_stack", "rows_of"]

#: The axis of a stack along which experts are looked up; it has no letter in the operator.
_LOOKED_UP = "looked up"


@dataclass(frozen=True)
class Route:
    """Which experts the rows of a value go to.

    Args:
        count: experts.
        rows: letters of the value but for the last axis and for those in ``dropped``.
        expert: the letter of the experts among them, ``None`` where they are looked up.
        indices: the name of what looks them up, ``None`` where they are not.
        chosen: letters of the indices; with ``deep`` they have another axis, of size 1.
    """

    count: int
    rows: tuple[str, ...]
    dropped: tuple[int, ...]
    expert: str | None
    indices: str | None
    chosen: tuple[str, ...]
    deep: bool

    def owners(self, x: np.ndarray, indices: np.ndarray | None) -> np.ndarray:
        """``[rows, choices]``: for each row of ``x`` (its leading axes made one) the experts that multiply it."""
        lead = x.squeeze(self.dropped).shape[:-1]
        if indices is None:
            places: np.ndarray = np.indices(lead, sparse=True)[self.rows.index(self.expert)]
            return np.broadcast_to(places, lead).reshape(-1, 1)
        among = (indices[..., 0] if self.deep else indices) % self.count
        own = [letter for letter in self.chosen if letter not in self.rows]
        order = [letter for letter in self.rows if letter in self.chosen] + own
        among = among.transpose([self.chosen.index(letter) for letter in order])
        among = np.expand_dims(among, [i for i, letter in enumerate(self.rows) if letter not in self.chosen])
        return np.broadcast_to(among, lead + among.shape[len(lead) :]).reshape(math.prod(lead), -1)


@dataclass(frozen=True)
class Experts:
    """A product with a stack, its axes as letters.

    Args:
        site: the operator.
        rows: letters of ``site.x`` but for the contracted one, which is last, and for ``dropped``.
        dropped: axes of ``site.x`` of size 1 along which it is broadcast.
        expert: the letter along which each matrix has its own rows, ``None`` for a single matrix.
        free: letters that the weight alone has, and the result.
        chosen: letters of the indices that look experts up.
        output: letters of the result.
        order: the axes of the weight but for the contracted one, as ``expert, *free``, then those of size 1.
    """

    site: Stack
    rows: tuple[str, ...]
    dropped: tuple[int, ...]
    expert: str | None
    free: tuple[str, ...]
    chosen: tuple[str, ...]
    output: tuple[str, ...]
    order: tuple[int, ...]
    sizes: Mapping[str, Any]

    @property
    def count(self) -> int:
        """Matrices."""
        return 1 if self.expert is None else self.sizes[self.expert]

    @property
    def indices(self) -> ir.Value | None:
        """The indices by which experts are looked up."""
        return None if self.site.reader is self.site.node else self.site.reader.inputs[1]

    def size(self, letters: Sequence[str]) -> list[Any]:
        """Sizes of letters."""
        return [self.sizes[letter] for letter in letters]

    @property
    def route(self) -> Route | None:
        """Which rows go to which expert; ``None`` for a single matrix."""
        if self.expert is None:
            return None
        indices, deep = self.indices, self.site.reader.op_type == "GatherND"
        expert, name = (self.expert, None) if indices is None else (None, indices.name)
        return Route(self.count, self.rows, self.dropped, expert, name, self.chosen, deep)

    @property
    def places(self) -> np.ndarray:
        """``[experts, out]``: the rows of each matrix in the weight, the contracted axis last, the others made one."""
        kept = list(sizes_of(self.site.weight))
        del kept[self.site.axis]
        return np.arange(math.prod(kept)).reshape(kept).transpose(self.order).reshape(self.count, -1)

    def pieces(self, q: Quantized) -> list[Quantized]:
        """The packed matrices ``[out, in]`` of each expert, ``out`` running over the free letters."""
        return [rows_of(q, piece) for piece in self.places]

    def evaluate(
        self, x: np.ndarray, matrix: Callable[[int], np.ndarray], indices: np.ndarray | None
    ) -> np.ndarray:  # fmt: skip
        """The result, in the type of its operands; one matrix is in memory at a time.

        Args:
            x: what the site reads.
            matrix: of an expert, ``[out, in]``, ``out`` running over the free letters.
            indices: what looks experts up.
        """
        letters, lead = list(self.rows), x.squeeze(self.dropped).shape[:-1]
        rows, width = x.reshape(-1, x.shape[-1]), self.places.shape[1]
        owners = np.zeros((len(rows), 1), int) if self.route is None else self.route.owners(x, indices)
        y = np.zeros((*owners.shape, width), x.dtype)
        for expert in range(self.count):
            mine, choice = np.nonzero(owners == expert)
            y[mine, choice] = rows[mine] @ matrix(expert).T
        own = [letter for letter in self.chosen if letter not in self.rows]
        among = dict(zip(self.chosen, () if indices is None else indices.shape, strict=False))
        y = y.reshape(*lead, *(among[letter] for letter in own), *self.size(self.free))
        if self.expert in letters and self.expert not in self.output:
            y = y.sum(letters.index(self.expert))
            letters.remove(self.expert)
        letters += [*own, *self.free]
        return y.transpose([letters.index(letter) for letter in self.output])

    def matrix(self, place: int) -> np.ndarray:
        """The matrix ``[in, out]`` of one expert, from the graph."""
        weight = np.moveaxis(constant(self.site.weight).numpy(), self.site.axis, -1)
        weight = weight.transpose(*self.order, weight.ndim - 1)
        return weight.reshape(self.count, -1, weight.shape[-1])[place].T


def rows_of(q: Quantized, rows: np.ndarray) -> Quantized:
    """Some rows of a quantized matrix ``[out, in]``."""
    import torch

    first, last = int(rows[0]), int(rows[-1])
    together = np.array_equal(rows, np.arange(first, last + 1))  # then nothing is copied
    index = slice(first, last + 1) if together else torch.from_numpy(np.ascontiguousarray(rows))
    zero_points = None if q.zero_points is None else q.zero_points[index]
    shape = (len(rows), q.shape[1])
    return replace(q, shape=shape, codes=q.codes[index], scales=q.scales[index], zero_points=zero_points)


def experts_of(site: Stack) -> Experts:
    """A site in the form of products of rows with matrices.

    Raises:
        TargetError: if its operator is no product of rows with matrices, one or each with its own.
    """
    node = site.node
    terms, output = _terms(node)
    place = 0 if node.inputs[1] is site.x else 1
    own, rows = terms[place], terms[1 - place]
    if len(set(own)) < len(own) or len(set(rows)) < len(rows):
        raise _refuse(node, "one operand has a letter twice")
    looked_up = site.reader is not node
    depth = len(own) - rank_of(site.weight) + 1 if looked_up else 0
    chosen, matrix = own[:depth], [_LOOKED_UP] * looked_up + own[depth:]
    if looked_up and (len(site.reader.outputs[0].uses()) > 1 or site.reader.outputs[0].is_graph_output()):
        raise _refuse(node, "another operator reads the matrices that it looks up")
    contracted = matrix[site.axis]
    if rows[-1] != contracted:
        raise _refuse(node, "the features that it reads are not along the last axis")
    sizes: dict[str, Any] = dict(zip(matrix, sizes_of(site.weight), strict=True))
    if looked_up:
        sizes |= dict(zip(chosen, shape_of(operand(site.reader, 1)), strict=False))
    read = list(zip(rows[:-1], shape_of(site.x), strict=False))
    dropped = [i for i, (letter, size) in enumerate(read) if size == 1 and sizes.get(letter, 1) != 1]
    rows = [letter for i, (letter, _) in enumerate(read) if i not in dropped]
    single = [letter for letter in matrix if letter in rows and sizes[letter] == 1]
    expert = [letter for letter in matrix if letter in rows and letter not in single]
    for letter, size in read:
        if letter in expert and size != sizes[letter]:
            raise _refuse(node, f"whether its input has {sizes[letter]} experts is not known")
    sizes |= {letter: size for letter, size in read if letter in rows}
    expert += [_LOOKED_UP] * looked_up
    if len(expert) > 1:
        raise _refuse(node, "its rows belong to experts along several axes")
    free = [letter for letter in matrix if letter not in (*rows, *expert, contracted)]
    lost = {*rows, *free, *chosen} - {*output} - ({*expert} if not looked_up else set())
    if lost:
        raise _refuse(node, "it adds results up along an axis")
    kept = [letter for letter in matrix if letter != contracted]
    order = tuple(kept.index(letter) for letter in (*expert, *free, *single))
    return Experts(site, tuple(rows), tuple(dropped), expert[0] if expert else None, tuple(free), tuple(chosen),
                   tuple(output), order, sizes)  # fmt: skip


def _terms(node: ir.Node) -> tuple[list[list[str]], list[str]]:
    if node.op_type == "Einsum":
        letters, output = read_letters(node)
        return [list(term) for term in letters], list(output)
    ranks = [rank_of(value) for value in operands(node)]
    batch = [f"batch {i}" for i in range(max(*ranks, 2) - 2, 0, -1)]
    ends = (["row"] * (ranks[0] > 1) + ["in"], ["in"] + ["out"] * (ranks[1] > 1))
    terms = [batch[len(batch) - max(rank - 2, 0) :] + end for rank, end in zip(ranks, ends, strict=True)]
    return terms, batch + ["row"] * (ranks[0] > 1) + ["out"] * (ranks[1] > 1)


def _refuse(node: ir.Node, reason: str) -> TargetError:
    sentence = "the stack of '{name}' ({op}) has no product for each matrix: {reason}"
    return refusal(TargetError, sentence, node, reason=reason)


def is_stack(site: Site) -> bool:
    """Whether a site is a product with the matrices of a stack, or with what is looked up in one."""
    return site.node.op_type in ("MatMul", "Einsum") and (len(site.shape) != 2 or site.node.op_type == "Einsum")
