"""Caches that may be quantized: keys and values, each with the attention that reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from qcompile.ir.cache_pairs import CachePair, cache_pairs
from qcompile.ir.graph import label, static
from qcompile.ir.required import name_of, optional
from qcompile.notes import Declined

__all__ = ["QUANTIZING", "SCORES", "CacheSite", "behind_softmax", "cache_sites"]

#: Work on caches, by the words in which it is declined.
QUANTIZING = "quantizing the cache"

#: The operator that holds keys and values itself, and may hold them in codes.
HOLDER = ("com.microsoft", "GroupQueryAttention")

#: Operators between a cache and the product that reads it: copies of heads for the queries that share them.
_COPIES = {"Expand", "Identity", "Reshape", "Tile", "Transpose", "Unsqueeze", "Cast"}

#: Operators between scores and the probabilities that weigh values.
SCORES = {"Add", "Cast", "Div", "Dropout", "Identity", "Mul", "Softmax", "Where"}


@dataclass(eq=False)
class CacheSite:
    """A cache ``[batch, heads, length, features]`` to which a graph appends, or into which it writes.

    Args:
        pair: the input that holds it, and the output that holds it with what is new.
        role: ``key`` or ``value``.
        new: the value that is appended, or written.
        reader: the operator that contracts it with queries or probabilities: Attention, or a MatMul.
        heads, features: its sizes.
    """

    kind: ClassVar[str] = "cache"
    pair: CachePair
    role: str
    new: ir.Value
    reader: ir.Node
    heads: int
    features: int

    @property
    def name(self) -> str:
        """The name of the input."""
        return name_of(self.pair.past)

    @property
    def held(self) -> bool:
        """Whether the operator that reads the cache appends to it itself; what is new is then the whole of it."""
        return self.reader is self.pair.node

    @property
    def grows(self) -> bool:
        """Whether the cache is longer with each call; it has one size otherwise."""
        return self.pair.axis is not None


def cache_sites(model: ir.Model) -> tuple[list[CacheSite], list[Declined]]:
    """The caches of a graph that may be quantized, and why others may not be."""
    found, declined = [], []
    for pair in cache_pairs(model):
        site = _site(pair)
        if isinstance(site, CacheSite):
            found.append(site)
        else:
            declined.append(Declined(name_of(pair.past), QUANTIZING, site))
    return found, declined


def _site(pair: CachePair) -> CacheSite | str:
    """The site of a pair, or the reason why it is left alone."""
    shape, writes = pair.past.shape, _writes(pair.node)
    if (pair.axis != 2 and not writes) or shape is None or len(shape) != 4:
        return (
            "it is no cache [batch, heads, length, features] that grows along its length, or is written into along it"
        )
    heads, features = static(shape[1]), static(shape[3])
    if heads is None or features is None:
        return "the graph does not say how many heads and features it has"
    if pair.past.dtype is not ir.DataType.FLOAT:
        return f"it holds {pair.past.dtype}, not float32"
    if (pair.node.domain, pair.node.op_type) == HOLDER:
        return _held(pair, heads, features)
    joins = pair.node.op_type == "Concat" and len(pair.node.inputs) == 2
    if not (joins or writes) or pair.node.outputs[0] is not pair.present:
        return f"{label(pair.node)} appends to it in a way of its own"
    if len(pair.past.uses()) > sum(_asks_size(node) for node, _ in pair.past.uses()) + 1:
        return "something else than what appends to it reads it"
    readers = dict.fromkeys(_readers(pair.present))
    if len(readers) != 1 or (found := next(iter(readers)))[1] is None:
        return "not one attention alone reads it as keys or as values"
    node, role = found
    new = pair.node.inputs[1]
    assert new is not None
    assert role is not None
    return CacheSite(pair, role, new, node, heads, features)


def _held(pair: CachePair, heads: int, features: int) -> CacheSite | str:
    """The site of a cache that GroupQueryAttention holds; calibration data without a past tell what is in it."""
    kinds = {pair.node.attributes.get_string(f"{role}_quant_type", "NONE") for role in ("k", "v")}
    if kinds != {"NONE"}:
        return "it holds codes of its own"
    if pair.present.uses() or len(pair.past.uses()) > sum(_asks_size(node) for node, _ in pair.past.uses()) + 1:
        return "something else than its attention reads it"
    role = "key" if optional(pair.node, 3) is pair.past else "value"
    return CacheSite(pair, role, pair.present, pair.node, heads, features)


def _writes(node: ir.Node) -> bool:
    """Whether an operator writes what is new into a cache of one size, along its length."""
    along = node.attributes.get_int("axis", -2) in (-2, 2)
    return node.op_type == "TensorScatter" and not node.domain and along


def _asks_size(node: ir.Node) -> bool:
    """Whether a node asks for sizes of a cache that stay when its features are packed."""
    return node.op_type == "Shape" and 0 < node.attributes.get_int("end", 4) < 4


def _readers(present: ir.Value) -> Iterator[tuple[ir.Node, str | None]]:
    """What reads a cache behind copies of its heads, and as what."""
    line, seen = [present], {present}
    while line:
        for node, place in line.pop().uses():
            if node.op_type in _COPIES and not node.domain and place == 0:
                line += [out for out in node.outputs if out not in seen]
                seen.update(node.outputs)
            elif not _asks_size(node):
                yield node, _role(node, place)


def _role(node: ir.Node, place: int) -> str | None:
    if node.op_type == "Attention" and not node.domain:
        return {1: "key", 2: "value"}.get(place)
    if node.op_type != "MatMul" or place != 1:
        return None
    left = optional(node, 0)
    return "value" if left is not None and behind_softmax(left) else "key"


def behind_softmax(value: ir.Value) -> bool:
    """Whether a value is made of probabilities."""
    seen: set[ir.Node] = set()
    line = [value.producer()]
    while line:
        node = line.pop()
        if node is None or node in seen or node.op_type not in SCORES:
            continue
        seen.add(node)
        if node.op_type == "Softmax":
            return True
        line += [given.producer() for given in node.inputs if given is not None]
    return False
