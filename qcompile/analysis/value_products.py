"""Products of two values that a graph computes: the two of attention, and those of scans; none has a weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from qcompile.analysis.cache_sites import SCORES, behind_softmax
from qcompile.ir.functions import DOMAIN
from qcompile.ir.graph import node_name
from qcompile.ir.required import name_of, optional

__all__ = ["Product", "products"]

#: Operators that are both products of attention, by the places of queries, keys and values.
_ATTENTION: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "Attention"): (0, 1, 2),
    ("com.microsoft", "GroupQueryAttention"): (0, 1, 2),
    ("com.microsoft", "MultiHeadAttention"): (0, 1, 2),
    ("com.microsoft", "PagedAttention"): (0, 1, 2),
}

#: Operators that are scans, by the places of what they multiply at each step.
_SCANS: dict[tuple[str, str], tuple[int, ...]] = {
    (DOMAIN, "SelectiveScan"): (0, 1, 3, 4),
    (DOMAIN, "SelectiveScanWithState"): (0, 1, 3, 4),
    (DOMAIN, "StateSpaceDuality"): (0, 1, 3, 4),
    (DOMAIN, "StateSpaceDualityWithState"): (0, 1, 3, 4),
    ("", "LinearAttention"): (0, 1, 2),
}

#: Why each stays as it is, by kind.
_REASONS = {
    "scores": "no target multiplies queries and keys in few bits: --cache-format stores keys so",
    "values": "no target multiplies probabilities and values in few bits: --cache-format stores values so",
    "scan": "no target computes scans on codes: the linear maps around them are quantized",
}


@dataclass(frozen=True)
class Product:
    """A product whose operands are no weights.

    Args:
        node: the name of the operator that computes it.
        kind: ``scores`` of queries and keys, ``values`` that probabilities weigh, or ``scan``.
        operands: names of the values that it multiplies.
        reason: why they are not quantized.
    """

    node: str
    kind: str
    operands: tuple[str, ...]
    reason: str


def products(model: ir.Model) -> list[Product]:
    """The products of attention and of scans, in the order of the graph."""
    return [product for node in model.graph for product in _products(node)]


def _products(node: ir.Node) -> Iterator[Product]:
    key = (node.domain, node.op_type)
    if (places := _ATTENTION.get(key)) is not None:
        query, keys, values = (optional(node, place) for place in places)
        yield _product(node, "scores", query, keys)
        yield _product(node, "values", values)
    elif (places := _SCANS.get(key)) is not None:
        yield _product(node, "scan", *(optional(node, place) for place in places))
    elif key == ("", "MatMul") and all(value is not None and value.const_value is None for value in node.inputs):
        left, right = node.inputs
        if left is not None and behind_softmax(left):
            yield _product(node, "values", left, right)
        elif _before_softmax(node.outputs[0]):
            yield _product(node, "scores", left, right)


def _product(node: ir.Node, kind: str, *operands: ir.Value | None) -> Product:
    return Product(node_name(node), kind, tuple(name_of(v) for v in operands if v is not None), _REASONS[kind])


def _before_softmax(value: ir.Value) -> bool:
    """Whether probabilities are made of a value."""
    seen, line = {value}, [value]
    while line:
        for node, _ in line.pop().uses():
            if node.op_type == "Softmax":
                return True
            if node.op_type in SCORES and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                line.append(node.outputs[0])
    return False
