"""Attention on packed codes by GroupQueryAttention of onnxruntime, which quantizes what it appends itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.analysis.attentions import CacheAttention
from qcompile.backends.ort.cache_in_graph import CacheInGraph
from qcompile.formats.cache_format import CacheFormat
from qcompile.ir.graph import append_node, ensure_initializer
from qcompile.ir.required import operand
from qcompile.run.session import CONTRIB

__all__ = ["Fusing"]

#: Added to scores that are masked: so much that their weight is 0, and yet a number.
_MASKED = -1e30

_TURN = {"perm": [0, 2, 1, 3]}


def _packing(fmt: CacheFormat) -> dict[str, Any]:
    """What GroupQueryAttention is told of the codes of a format with static scales."""
    kind = {"tensor": "PER_TENSOR", "channel": "PER_CHANNEL"}[str(fmt.static)]
    return {"k_quant_type": kind, "v_quant_type": kind, "kv_cache_bit_width": fmt.bits}


class Fusing:
    """Attention on packed codes; what all layers share is made once."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._lengths: list[ir.Value] = []
        self._biases: dict[ir.Value, ir.Value] = {}

    def fuse(self, attention: CacheAttention, caches: dict[str, CacheInGraph]) -> None:
        """Let GroupQueryAttention compute an attention with its keys and values."""
        key, value = caches["key"], caches["value"]
        reader, mask, queries = value.site.reader, attention.bias, attention.heads
        query = operand(key.site.reader, 0)  # in the basis of the keys
        fmt, name = key.plan.format, reader.name or "attention"
        packed = [self._flat(reader, v, n) for v, n in
                  ((query, "query"), (key.new(), "key"), (value.new(), "value"))]  # fmt: skip
        pasts = [cache.take_codes() for cache in (key, value)]
        lengths = self._lengths_of(reader, pasts[0], query)
        bias = None if mask is None else self._bias(reader, mask)
        settings: dict[str, Any] = {
            "num_heads": queries, "kv_num_heads": key.site.heads, "scale": attention.scale
        }  # fmt: skip
        given = [*packed, *pasts, *lengths, None, None, None, bias]
        if fmt.static is not None:
            settings |= _packing(fmt)
            given += [None, key.scale(), value.scale()]
        made = append_node(
            reader, "GroupQueryAttention", given, settings, name=f"{name}/fused", domain=CONTRIB, outputs=3
        )
        self.model.opset_imports.setdefault(CONTRIB, 1)
        self.model.graph.opset_imports.setdefault(CONTRIB, 1)
        for cache, codes in zip((key, value), made.outputs[1:], strict=True):
            cache.give_codes(codes)
        shape = ensure_initializer(
            self.model, f"caches/heads_{queries}_{value.site.features}", np.array([0, 0, queries, value.site.features])
        )
        apart = append_node(reader, "Reshape", [made.outputs[0], shape], name=f"{name}/heads").outputs[0]
        turned = append_node(reader, "Transpose", [apart], _TURN, name=f"{name}/turned", like=attention.output)
        ir.convenience.replace_all_uses_with(attention.output, turned.outputs[0])

    def pack(self, caches: dict[str, CacheInGraph]) -> None:
        """Let GroupQueryAttention hold its caches in codes."""
        key, value = caches["key"], caches["value"]
        node, codes = key.node, [cache.take_codes() for cache in (key, value)]
        given = [*node.inputs[:3], *codes, *node.inputs[5:12]]
        given += [None] * (12 - len(given))
        settings = {name: attribute.value for name, attribute in node.attributes.items()}
        made = append_node(
            node, node.op_type, [*given, key.scale(), value.scale(), *node.inputs[14:]],
            settings | _packing(key.plan.format), name=f"{node.name}/packed", domain=CONTRIB, outputs=len(node.outputs),
            like=node.outputs[0],
        )  # fmt: skip
        for cache, held in zip((key, value), made.outputs[1:3], strict=True):
            cache.give_codes(held)
        ir.convenience.replace_all_uses_with(node.outputs[0], made.outputs[0], replace_graph_outputs=True)

    def _flat(self, before: ir.Node, value: ir.Value, what: str) -> ir.Value:
        """``[batch, heads, length, features]`` as ``[batch, length, heads * features]``."""
        name = f"{before.name}/{what}"
        turned = append_node(before, "Transpose", [value], _TURN, name=f"{name}/turned").outputs[0]
        dims = list(value.shape or ())
        shape = ensure_initializer(self.model, f"caches/flat_{dims[1] * dims[3]}", np.array([0, 0, dims[1] * dims[3]]))
        return append_node(before, "Reshape", [turned, shape], name=f"{name}/flat").outputs[0]

    def _lengths_of(self, before: ir.Node, past: ir.Value, query: ir.Value) -> list[ir.Value]:
        """Positions of each sequence but the last, int32 ``[batch]``, and of all, an int32."""
        if self._lengths:
            return self._lengths
        count = iter(range(20))

        def node(op: str, inputs: list[ir.Value], **attributes: Any) -> ir.Value:
            return append_node(before, op, inputs, attributes, name=f"caches/lengths_{next(count)}").outputs[0]

        one = ensure_initializer(self.model, "caches/one", np.array([1]))
        zero = ensure_initializer(self.model, "caches/zero", np.array([0]))
        total = node("Add", [node("Shape", [past], start=2, end=3), node("Shape", [query], start=2, end=3)])
        last = node("Cast", [node("Sub", [total, one])], to=int(ir.DataType.INT32))
        each = node("Expand", [last, node("Shape", [query], start=0, end=1)])
        whole = node("Cast", [node("Squeeze", [total, zero])], to=int(ir.DataType.INT32))
        self._lengths = [each, whole]
        return self._lengths

    def _bias(self, before: ir.Node, mask: ir.Value) -> ir.Value:
        """A mask as numbers that are added to scores ``[batch, heads, queries, keys]``."""
        if mask not in self._biases:
            found, name = mask, f"{mask.name}/bias"
            if mask.dtype is ir.DataType.BOOL:
                allowed = ensure_initializer(self.model, "caches/allowed", np.array(0, np.float32))
                masked = ensure_initializer(self.model, "caches/masked", np.array(_MASKED, np.float32))
                found = append_node(before, "Where", [mask, allowed, masked], name=name).outputs[0]
            missing = 4 - len(mask.shape or [0] * 4)
            if missing:
                axes = ensure_initializer(self.model, f"caches/first_{missing}", np.arange(missing))
                found = append_node(before, "Unsqueeze", [found, axes], name=f"{name}/ranked").outputs[0]
            self._biases[mask] = found
        return self._biases[mask]
