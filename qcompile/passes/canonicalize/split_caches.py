"""Split caches: attention that holds its cache becomes the joining of the past with what is new, and attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.ir.graph import append_node, ensure_initializer, is_read
from qcompile.ir.required import graph_of, operand, optional, rank_of
from qcompile.passes.state import State

__all__ = ["SplitCaches"]

#: Behind queries, keys, values and a mask: what was before of keys and of values.
_PASTS = (4, 5)

_SWAP = {"perm": [0, 2, 1, 3]}

#: Added to scores of positions that are not seen, which float16 holds as well.
_MASKED = -6e4


@dataclass(frozen=True)
class SplitCaches:
    """Put attention with a past apart, so that its caches are found as those of any other decoder."""

    name: ClassVar[str] = "split-caches"

    def apply(self, state: State) -> bool:
        """Rewrite attention of the main graph."""
        found = [node for node in state.model.graph if _holds(node)]
        for node in found:
            _Split(state.model, node).apply()
        if found:
            state.edited()
        return bool(found)


def _holds(node: ir.Node) -> bool:
    """Whether a node joins keys and values with a past, and makes nothing that needs both at once."""
    if node.op_type != "Attention" or node.domain or any(optional(node, place) is None for place in _PASTS):
        return False
    return not is_read(node, 3) and optional(node, 6) is None


class _Split:
    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self.model, self.node = model, node
        self.flat = rank_of(operand(node, 0)) == 3
        heads = [node.attributes.get_int(name, 0) for name in ("q_num_heads", "kv_num_heads")]
        self.heads = (heads[0], heads[1], heads[1])

    def apply(self) -> None:
        """Rewrite the operator."""
        node, attributes = self.node, dict(self.node.attributes)
        query, key, value = (self._apart(place) for place in range(3))
        for place, new, present in ((4, key, 1), (5, value, 2)):
            past = operand(node, place)
            joined = self._add("Concat", [past, new], f"present_{present}", axis=2)
            if len(node.outputs) > present:
                old = node.outputs[present]
                joined.shape, joined.type = old.shape, old.type or past.type
                if old.name and (old.is_graph_output() or old.uses()):
                    ir.convenience.replace_all_uses_with(old, joined, replace_graph_outputs=True)
            key, value = (joined, value) if present == 1 else (key, joined)
        mask = self._mask(query, key) if node.attributes.get_int("is_causal", 0) else optional(node, 3)
        made = self._attend([query, key, value, mask], attributes)
        ir.convenience.replace_all_uses_with(node.outputs[0], made, replace_graph_outputs=True)
        graph_of(node).remove(node, safe=True)

    def _attend(self, inputs: list[ir.Value | None], attributes: dict[str, ir.Attr]) -> ir.Value:
        kept = {name: attr.value for name, attr in attributes.items() if not name.endswith("num_heads")}
        settings = kept | {"is_causal": 0}
        old = self.node.outputs[0]
        made = append_node(
            self.node, "Attention", inputs, settings, name=f"{self.node.name}_alone", like=None if self.flat else old
        ).outputs[0]
        if not self.flat:
            return made
        turned = self._add("Transpose", [made], "turned", **_SWAP)
        joined = self._add("Reshape", [turned, self._vector("joined", [0, 0, -1])], "joined")
        joined.shape, joined.type = old.shape, old.type
        return joined

    def _apart(self, place: int) -> ir.Value:
        """An operand as ``[batch, heads, length, features]``."""
        value = operand(self.node, place)
        if not self.flat:
            return value
        shape = [0, 0, self.heads[place], -1]
        apart = self._add("Reshape", [value, self._vector(f"heads_{self.heads[place]}", shape)], f"apart_{place}")
        return self._add("Transpose", [apart], f"heads_{place}", **_SWAP)

    def _mask(self, query: ir.Value, key: ir.Value) -> ir.Value:
        """The mask with later positions in it as well: of the last query, the last key is its own."""
        zero, one = self._scalar("zero", 0), self._scalar("one", 1)
        count, total = (
            self._add("Squeeze", [self._add("Shape", [value], f"{name}_size", start=2, end=3)], f"{name}_length")
            for name, value in (("query", query), ("key", key))
        )
        first = self._add("Sub", [total, count], "first")
        own = self._add("Range", [first, total, one], "own")
        column = self._add("Unsqueeze", [own, self._vector("last", [1])], "own_column")
        seen = self._add("LessOrEqual", [self._add("Range", [zero, total, one], "places"), column], "seen")
        given, found, kind = optional(self.node, 3), seen, ir.DataType.BOOL
        if given is not None and given.dtype is ir.DataType.BOOL:
            found = self._add("And", [seen, given], "seen_too")
        elif given is not None:
            kind = given.dtype or ir.DataType.FLOAT
            unseen = ensure_initializer(self.model, f"split_caches/unseen_{kind}", np.array(_MASKED, kind.numpy()))
            found = self._add("Where", [seen, given, unseen], "masked")
        found.type = ir.TensorType(kind)
        found.shape = ir.Shape([None] * max(2, 0 if given is None else rank_of(given)))
        return found

    def _add(self, op: str, inputs: list[ir.Value], name: str, **attributes: object) -> ir.Value:
        return append_node(self.node, op, inputs, attributes, name=f"{self.node.name}_{name}").outputs[0]

    def _scalar(self, name: str, number: int) -> ir.Value:
        return ensure_initializer(self.model, f"split_caches/{name}", np.array(number))

    def _vector(self, name: str, numbers: list[int]) -> ir.Value:
        return ensure_initializer(self.model, f"split_caches/{name}_axes", np.array(numbers))
