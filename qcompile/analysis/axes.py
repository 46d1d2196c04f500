"""The algebra of axes: which axes of which values must change basis together.

Every axis of every value refers to a node. Nodes are joined by union-find; a node is a leaf, a product (heads x
head_dim), or a direct sum (the parts of a fused projection), refined on demand when a Reshape or Split shows the
structure. A reference carries a *mode*: the transform of the axis may be the node's own, its dual ``T⁻ᵀ`` (the
other side of a contraction), or its permutation part alone (the nonlinear branch of a gate).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from qcompile.transforms.freedom import Freedom

__all__ = ["Axes", "Limit", "Mode", "AxisNode", "Ref", "Structure", "complete"]

T = TypeVar("T")


def complete(items: Iterable[T | None]) -> list[T] | None:
    """The items, ``None`` if one of them is missing."""
    found = []
    for item in items:
        if item is None:
            return None
        found.append(item)
    return found


class Mode(enum.Enum):
    """How the transform of an axis follows from the transform of the node it refers to."""

    SAME = "same"
    DUAL = "dual"  # T⁻ᵀ
    PLAIN = "plain"  # the permutation P of a monomial T = P·D

    def after(self, inner: Mode) -> Mode:
        """The mode of applying ``inner`` first and then this one."""
        if Mode.PLAIN in (self, inner):
            return Mode.PLAIN
        return Mode.SAME if self is inner else Mode.DUAL


class Structure(enum.Enum):
    """The parts that a node is made of."""

    LEAF = "leaf"
    PRODUCT = "product"  # row-major: the last factor runs fastest
    SUM = "sum"  # consecutive segments


@dataclass(frozen=True)
class Limit:
    """One reason why a space has less freedom than ``Freedom.GENERAL``.

    Args:
        freedom: the largest group that the operator leaves.
        reason: the operator and what it does to the axis.
    """

    freedom: Freedom
    reason: str


@dataclass(eq=False)
class AxisNode:
    """A node of the union-find forest. ``size`` is ``None`` for a dynamic axis."""

    size: int | None
    structure: Structure = Structure.LEAF
    children: list[Ref] = field(default_factory=list)
    freedom: Freedom = Freedom.GENERAL
    limits: list[Limit] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)  # of every constraint, those that took nothing away included
    culprits: set[object] = field(default_factory=set)  # operators and values that left no rotation
    parent: Ref | None = None


@dataclass(frozen=True)
class Ref:
    """An axis' view of a node."""

    node: AxisNode
    mode: Mode = Mode.SAME

    def through(self, mode: Mode) -> Ref:
        """This reference, seen through a further mode."""
        return Ref(self.node, mode.after(self.mode))


class Axes:
    """The forest of one graph, and the operations that rules are written in."""

    def __init__(self) -> None:
        self.one = Ref(AxisNode(1, freedom=Freedom.NONE))
        self.at: object = None  # the operator or the value that constrains just now

    # -- making and looking up ------------------------------------------------------------------------

    def fresh(self, size: int | None) -> Ref:
        """A new axis of that size; dynamic axes never change basis."""
        if size == 1:
            return self.one
        freedom = Freedom.GENERAL if size is not None else Freedom.NONE
        return Ref(AxisNode(size, freedom=freedom))

    def frozen(self, size: int | None, reason: str) -> Ref:
        """A new axis that may not change basis, for that reason."""
        ref = self.fresh(size)
        self.constrain(ref, Freedom.NONE, reason)
        return ref

    def find(self, ref: Ref) -> Ref:
        """The root that ``ref`` leads to, with the mode along the way; compresses the path."""
        if ref.node.parent is None:
            return ref
        path = []
        while (parent := ref.node.parent) is not None:
            path.append((ref.node, parent))
            ref = parent.through(ref.mode)
        for node, parent in reversed(path):  # nearest the root first, so each parent is already compressed
            if parent.node.parent is not None:
                node.parent = parent.node.parent.through(parent.mode)
        return ref

    def size(self, ref: Ref) -> int | None:
        """The size of an axis, ``None`` if dynamic."""
        return self.find(ref).node.size

    def children(self, ref: Ref) -> list[Ref]:
        """The factors or segments of a structured axis, seen through its mode."""
        root = self.find(ref)
        return [child.through(root.mode) for child in root.node.children]

    def segments(self, ref: Ref) -> list[Ref]:
        """The consecutive segments of an axis, itself if it is no sum."""
        root = self.find(ref)
        if root.node.structure is not Structure.SUM:
            return [root]
        return [segment for child in self.children(root) for segment in self.segments(child)]

    def leaves(self, ref: Ref) -> list[Ref]:
        """All leaf roots under an axis, in order."""
        root = self.find(ref)
        if root.node.structure is Structure.LEAF:
            return [root]
        return [leaf for child in self.children(root) for leaf in self.leaves(child)]

    def same(self, a: Ref, b: Ref) -> bool:
        """Whether two axes are known to be one and the same."""
        return self.find(a) == self.find(b)

    # -- constraints ------------------------------------------------------------------------------------

    def constrain(self, ref: Ref, freedom: Freedom, reason: str) -> None:
        """Leave ``ref`` no more than ``freedom``; the groups are closed under factors and segments."""
        root = self.find(ref)
        if root.mode is Mode.PLAIN:
            freedom = Freedom.MONOMIAL if Freedom.PERMUTATION in freedom else Freedom.DIAGONAL
        node = root.node
        if Freedom.ORTHOGONAL_ONES not in freedom:
            node.culprits.add(self.at)
        if reason in node.reasons and node.freedom in freedom:
            return
        node.reasons.add(reason)
        if node.freedom not in freedom:
            node.freedom &= freedom
            node.limits.append(Limit(freedom, reason))
        for child in node.children:
            self.constrain(child, freedom, reason)

    # -- joining ------------------------------------------------------------------------------------------

    def unify(self, a: Ref, b: Ref, reason: str) -> None:
        """Require that the two axes carry the same transform."""
        a, b = self.find(a), self.find(b)
        if a.node is b.node:
            self._unify_with_itself(a, b, reason)
        elif a.node.size != b.node.size:
            self._freeze((a, b), f"{reason}: sizes {a.node.size} and {b.node.size} are joined")
        elif a.node.structure is Structure.LEAF or b.node.structure is Structure.LEAF:
            self._unify_leaf(a, b, reason)
        else:
            self._unify_structures(a, b, reason)

    def _unify_with_itself(self, a: Ref, b: Ref, reason: str) -> None:
        if a.mode is not b.mode:
            plain = Mode.PLAIN in (a.mode, b.mode)
            self.constrain(Ref(a.node), Freedom.PERMUTATION if plain else Freedom.ORTHOGONAL, reason)

    def _unify_leaf(self, a: Ref, b: Ref, reason: str) -> None:
        if a.node.structure is not Structure.LEAF or (a.mode is Mode.PLAIN and b.node.structure is Structure.LEAF):
            a, b = b, a
        if a.mode is not Mode.PLAIN:
            self._link(a.node, b.through(a.mode), reason)  # modes are their own inverses here
        elif b.node.structure is Structure.LEAF:  # both plain: joining the roots is stricter than needed
            self._link(a.node, Ref(b.node), reason)
        else:
            self._copy_structure(a.node, b.node)
            self._unify_structures(a, b, reason)

    def _link(self, loser: AxisNode, winner: Ref, reason: str) -> None:
        if winner.mode is Mode.PLAIN:
            self.constrain(Ref(winner.node), Freedom.MONOMIAL, reason)
        loser.parent = winner
        at, self.at = self.at, None  # what the loser was held to has culprits of its own
        limits = loser.limits or ([Limit(loser.freedom, reason)] if loser.freedom != Freedom.GENERAL else [])
        for limit in limits:
            self.constrain(winner, limit.freedom, limit.reason)
        self.at = at
        winner.node.reasons |= loser.reasons
        self._blame(winner.node, loser.culprits)

    def _blame(self, node: AxisNode, culprits: set[object]) -> None:
        node.culprits |= culprits
        node.culprits.discard(None)
        for child in node.children:
            self._blame(self.find(child).node, culprits)

    def _copy_structure(self, leaf: AxisNode, model: AxisNode) -> None:
        leaf.structure = model.structure
        leaf.children = [self._child(leaf, self.size(child)) for child in model.children]

    def _child(self, node: AxisNode, size: int | None) -> Ref:
        ref = self.fresh(size)
        for limit in node.limits:
            self.constrain(ref, limit.freedom, limit.reason)
        if size is not None and size > 1:
            ref.node.reasons |= node.reasons
            ref.node.culprits = node.culprits - {None}
        return ref

    def _unify_structures(self, a: Ref, b: Ref, reason: str) -> None:
        for split, structure in ((self.as_product, Structure.PRODUCT), (self.as_sum, Structure.SUM)):
            if a.node.structure is structure:
                parts_b = split(b, [self.size(child) for child in self.children(a)], reason)
                parts_a = None
                if parts_b is None and b.node.structure is structure:
                    parts_b = self.children(b)
                    parts_a = split(a, [self.size(child) for child in parts_b], reason)
                elif parts_b is not None:
                    parts_a = self.children(a)
                if parts_a is None or parts_b is None or len(parts_a) != len(parts_b):
                    self._freeze((a, b), f"{reason}: the axis is split in two ways that do not fit together")
                    return
                for left, right in zip(parts_a, parts_b, strict=True):
                    self.unify(left, right, reason)
                return

    def _freeze(self, refs: Sequence[Ref], reason: str) -> None:
        for ref in refs:
            self.constrain(ref, Freedom.NONE, reason)

    # -- products -------------------------------------------------------------------------------------------

    def product(self, refs: Sequence[Ref]) -> Ref:
        """The axis whose index runs over those axes in row-major order."""
        factors = [factor for ref in refs for factor in self.factors(ref)]
        if len(factors) <= 1:
            return factors[0] if factors else self.one
        sizes = complete(self.size(factor) for factor in factors)
        size = None if sizes is None else math.prod(sizes)
        return Ref(AxisNode(size, Structure.PRODUCT, factors, limits=[]))

    def factors(self, ref: Ref) -> list[Ref]:
        """The flattened factors of an axis, without those of size one."""
        root = self.find(ref)
        if root.node.structure is Structure.PRODUCT:
            return [factor for child in self.children(root) for factor in self.factors(child)]
        return [] if root.node.size == 1 else [root]

    def as_product(self, ref: Ref, sizes: Sequence[int | None], reason: str) -> list[Ref] | None:
        """``ref`` as a product of axes of those sizes, refining it where needed; ``None`` if it cannot be."""
        groups = self.regroup(self.factors(ref), sizes, reason)
        return None if groups is None else [self.product(group) for group in groups]

    def regroup(self, factors: list[Ref], sizes: Sequence[int | None], reason: str) -> list[list[Ref]] | None:
        """Distribute factors over consecutive axes of the given sizes, splitting factors where needed."""
        known = [size for size in sizes if size is not None]
        if len(sizes) - len(known) > 1:
            return None
        hole = sizes.index(None) if None in sizes else -1
        rest = list(factors)
        back = [self.take_back(rest, size, reason) for size in reversed(known[max(hole, 0) :])]
        front = [self.take_front(rest, size, reason) for size in known[: max(hole, 0)]]
        if hole < 0 and rest:
            return None
        return complete([*front, *([rest] if hole >= 0 else []), *reversed(back)])

    def take_back(self, factors: list[Ref], want: int, reason: str) -> list[Ref] | None:
        """Remove factors of total size ``want`` from the end of the list, splitting the first one if needed."""
        taken: list[Ref] = []
        while want > 1:
            if not factors:
                return None
            size = self.size(factors[-1])
            if not size:
                return None
            if size <= want and want % size == 0:
                taken.insert(0, factors.pop())
                want //= size
            elif size % want == 0:
                parts = self._split_factor(factors[-1], size // want, want, reason)
                if parts is None:
                    return None
                factors[-1:] = parts
            else:
                return None
        return taken

    def take_front(self, factors: list[Ref], want: int, reason: str) -> list[Ref] | None:
        """Remove factors of total size ``want`` from the start of the list, splitting the last one if needed."""
        taken: list[Ref] = []
        while want > 1:
            size = self.size(factors[0]) if factors else None
            if not size:
                return None
            if want % size:
                parts = None if size % want else self._split_factor(factors[0], want, size // want, reason)
                if parts is None:
                    return None
                factors[:1] = parts
                size = want
            taken.append(factors.pop(0))
            want //= size
        return taken

    def _split_factor(self, ref: Ref, outer: int, inner: int, reason: str) -> list[Ref] | None:
        root = self.find(ref)
        if root.node.structure is Structure.LEAF:
            root.node.structure = Structure.PRODUCT
            root.node.children = [self._child(root.node, outer), self._child(root.node, inner)]
            return self.children(root)
        return self._sum_to_product(root, inner, reason)

    def _sum_to_product(self, root: Ref, inner: int, reason: str) -> list[Ref] | None:
        """Rewrite ``(a·i) ⊕ (b·i)`` as ``(a ⊕ b)·i``."""
        segments = self.children(Ref(root.node))
        sizes = complete(self.size(segment) for segment in segments)
        if sizes is None or any(size % inner for size in sizes):
            return None
        parts_of = zip(segments, sizes, strict=True)
        split = complete([self.as_product(segment, [size // inner, inner], reason) for segment, size in parts_of])
        if split is None:
            return None
        for parts in split[1:]:
            self.unify(split[0][1], parts[1], reason)
        root.node.structure = Structure.PRODUCT
        root.node.children = [self.concat([parts[0] for parts in split]), split[0][1]]
        return self.children(root)

    # -- sums -------------------------------------------------------------------------------------------------

    def concat(self, refs: Sequence[Ref]) -> Ref:
        """The axis made of those segments, one after the other; empty ones leave no trace."""
        refs = [ref for ref in refs if self.size(ref) != 0] or list(refs[:1])
        if len(refs) == 1:
            return refs[0]
        sizes = complete(self.size(ref) for ref in refs)
        size = None if sizes is None else sum(sizes)
        return Ref(AxisNode(size, Structure.SUM, [self._segment(ref) for ref in refs]))

    def _segment(self, ref: Ref) -> Ref:
        # A segment of size one is an axis of its own: the shared unit axis has no place of its own to refine.
        return Ref(AxisNode(1, freedom=Freedom.NONE)) if self.size(ref) == 1 else ref

    def as_sum(self, ref: Ref, wanted: Sequence[int | None], reason: str) -> list[Ref] | None:
        """``ref`` as consecutive segments of those sizes, refining it where needed; ``None`` if it cannot be."""
        root, sizes = self.find(ref), complete(wanted)
        if sizes is None or root.node.size != sum(sizes):
            return None
        if len(sizes) == 1:
            return [root]
        if 0 in sizes:
            parts = self.as_sum(ref, [size for size in sizes if size], reason)
            return parts and [parts.pop(0) if size else Ref(AxisNode(0, freedom=Freedom.NONE)) for size in sizes]
        if root.node.structure is Structure.LEAF:
            root.node.structure = Structure.SUM
            root.node.children = [self._segment_child(root.node, size) for size in sizes]
            return self.children(root)
        if root.node.structure is Structure.PRODUCT:
            return self._split_product(root, sizes, reason)
        return self._split_sum(root, sizes, reason)

    def _segment_child(self, node: AxisNode, size: int) -> Ref:
        return Ref(AxisNode(1, freedom=Freedom.NONE)) if size == 1 else self._child(node, size)

    def _split_product(self, root: Ref, sizes: Sequence[int], reason: str) -> list[Ref] | None:
        """Split ``o·i`` at multiples of ``i``: the outer factor is split, the inner one shared."""
        factors = self.factors(root)
        inner = math.prod(self.size(factor) or 0 for factor in factors[1:])
        if not inner or any(size % inner for size in sizes):
            return None
        outer = self.as_sum(factors[0], [size // inner for size in sizes], reason)
        return outer and [self.product([part, *factors[1:]]) for part in outer]

    def _split_sum(self, root: Ref, sizes: Sequence[int], reason: str) -> list[Ref] | None:
        segments = self.children(root)
        lengths = complete(self.size(segment) for segment in segments)
        if lengths is None:
            return None
        groups: list[list[Ref]] = []
        for want in sizes:
            group: list[Ref] = []
            while want:
                if lengths[0] > want:
                    cut = [want, lengths[0] - want]
                    parts = self.as_sum(segments[0], cut, reason)
                    if parts is None:
                        return None
                    segments[:1], lengths[:1] = parts, cut
                group.append(segments.pop(0))
                want -= lengths.pop(0)
            groups.append(group)
        return [self.concat(group) for group in groups]
