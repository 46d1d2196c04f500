"""Attention over caches of keys and values, whether it is one operator or spelled out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcompile.analysis.cache_sites import CacheSite
from qcompile.ir.graph import static
from qcompile.ir.required import operand, optional

__all__ = ["CacheAttention", "cache_attentions"]

#: Operators between scores and the product with values that leave them as they are when a model is not trained.
_SAME = {"Cast", "Dropout", "Identity"}


@dataclass(frozen=True, eq=False)
class CacheAttention:
    """``softmax(scale * q kᵀ + bias) v`` over two caches.

    Args:
        query: ``[batch, heads, queries, features]``.
        bias: what is added to scores, or of bool, what may be seen; ``None`` for neither.
        scale: the factor of scores.
        causal: whether later positions are masked as well.
        output: of the shape of the queries.
    """

    query: ir.Value
    bias: ir.Value | None
    scale: float
    causal: bool
    output: ir.Value

    @property
    def heads(self) -> int | None:
        """Heads of queries, if the graph says how many there are and of what size."""
        shape = self.query.shape
        if shape is None or len(shape) != 4 or static(shape[3]) is None:
            return None
        return static(shape[1])


def cache_attentions(sites: Iterable[CacheSite]) -> list[tuple[CacheAttention | None, dict[str, CacheSite]]]:
    """Caches by the attention that reads them, by role; ``None`` where what reads them is no such attention."""
    sites = list(sites)
    found: list[tuple[CacheAttention | None, dict[str, CacheSite]]] = []
    keys = {site.reader: site for site in sites if site.role == "key"}
    for value in (site for site in sites if site.role == "value"):
        if value.held:
            key = {"key": keys.pop(value.reader)} if value.reader in keys else {}
            found.append((None, key | {"value": value}))
            continue
        made = _one_operator(value.reader) if value.reader.op_type == "Attention" else _spelled_out(value.reader, keys)
        if made is not None and made[0] in keys:
            found.append((made[1], {"key": keys.pop(made[0]), "value": value}))
        else:
            found.append((None, {"value": value}))
    return found + [(None, {"key": key}) for key in keys.values()]


def _one_operator(node: ir.Node) -> tuple[ir.Node, CacheAttention] | None:
    if node.attributes.get_float("softcap", 0.0) or any(out.uses() for out in node.outputs[1:]):
        return None
    query = operand(node, 0)
    features = None if query.shape is None else static(query.shape[-1])
    if features is None or any(optional(node, place) is not None for place in range(4, len(node.inputs))):
        return None
    scale, causal = node.attributes.get_float("scale", features**-0.5), bool(node.attributes.get_int("is_causal", 0))
    return node, CacheAttention(query, optional(node, 3), scale, causal, node.outputs[0])


def _spelled_out(last: ir.Node, keys: Iterable[ir.Node]) -> tuple[ir.Node, CacheAttention] | None:
    """From the product with values back to that of queries and keys, which comes with what is known of it."""
    node, bias, scale, normed = _alone(operand(last, 0)), None, 1.0, False
    while node is not None and node not in keys:
        first = operand(node, 0)
        if node.op_type in _SAME:
            pass
        elif not normed:
            if node.op_type != "Softmax" or node.attributes.get_int("axis", -1) not in (-1, 3):
                return None
            normed = True
        elif (factor := _factor(node)) is not None:
            scale *= factor
        elif bias is None and scale == 1.0 and (added := _added(node, keys)) is not None:
            first, bias = added
        else:
            return None
        node = _alone(first)
    if node is None or not normed:
        return None
    return node, CacheAttention(operand(node, 0), bias, scale, False, last.outputs[0])


def _alone(value: ir.Value) -> ir.Node | None:
    """What makes a value that nothing else reads."""
    return None if value.is_graph_output() or len(value.uses()) != 1 else value.producer()


def _factor(node: ir.Node) -> float | None:
    """The constant by which an operator multiplies its first input."""
    if node.op_type not in ("Mul", "Div") or node.domain:
        return None
    tensor = operand(node, 1).const_value
    if tensor is None or tensor.size != 1:
        return None
    number = float(np.asarray(tensor.numpy()).item())
    return number if node.op_type == "Mul" else 1 / number


def _added(node: ir.Node, keys: Iterable[ir.Node]) -> tuple[ir.Value, ir.Value] | None:
    """The scores, and what an operator adds to them."""
    if node.op_type != "Add" or node.domain:
        return None
    left, right = operand(node, 0), operand(node, 1)
    return (left, right) if _leads_to(left, keys) else (right, left) if _leads_to(right, keys) else None


def _leads_to(value: ir.Value, keys: Iterable[ir.Node]) -> bool:
    node = value.producer()
    while node is not None and node not in keys and (node.op_type in _SAME or _factor(node) is not None):
        node = operand(node, 0).producer()
    return node is not None and node in keys
