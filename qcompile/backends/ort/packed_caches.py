"""Caches as packed codes: inputs and outputs of the graph, decoded where attention reads them, or read as they are.

In standard operators a cache is decoded for each token that is written; GroupQueryAttention of onnxruntime reads codes
of 4 and 8 bits with static scales itself. What is new is quantized when it is appended, in both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.analysis.attentions import CacheAttention, cache_attentions
from qcompile.analysis.cache_sites import CacheSite, cache_sites
from qcompile.backends.ort.cache_bodies import dequantizing, quantizing
from qcompile.ir.functions import DOMAIN, add_function, opset
from qcompile.ir.graph import add_initializer, append_node, drop_unused, ensure_initializer, static
from qcompile.ir.required import name_of, operand
from qcompile.run.session import CONTRIB
from qcompile.targets.cache_plans import CachePlan, caches_planned

__all__ = ["lower_caches"]

#: Added to scores that are masked: so much that their weight is 0, and yet a number.
_MASKED = -1e30

_SCALES = ir.TensorType(ir.DataType.FLOAT16)

_TURN = {"perm": [0, 2, 1, 3]}


def lower_caches(model: ir.Model) -> list[CachePlan]:
    """Rewrite each planned cache in place, and return the plans."""
    plans = {plan.past: plan for _, plan in caches_planned(model)}
    if not plans:
        return []
    sites = [site for site in cache_sites(model)[0] if site.name in plans]
    fusing = _Fusing(model)
    for attention, roles in cache_attentions(sites):
        caches = {role: _Cache(model, site, plans[site.name]) for role, site in roles.items()}
        for cache in caches.values():
            cache.turn_reader()
        if attention is not None and all(cache.plan.form == "fused" for cache in caches.values()):
            fusing.fuse(attention, caches)
        else:
            for cache in caches.values():
                cache.decode()
    drop_unused(model)
    return list(plans.values())


class _Cache:
    """One cache of a graph that is being lowered."""

    def __init__(self, model: ir.Model, site: CacheSite, plan: CachePlan) -> None:
        self.model, self.site, self.plan = model, site, plan
        self.node, self.old, self.present = site.pair.node, site.pair.past, site.pair.present
        self.name, self.width = site.name, site.features // plan.format.per_byte
        self.type = ir.TensorType(ir.DataType.from_numpy(plan.format.stored))

    def turn_reader(self) -> None:
        """Let queries be in the basis of the keys that are stored, or bring the output back from that of the values."""
        reader, basis = self.site.reader, self.plan.basis
        if basis is None:
            return
        made = operand(reader, 0) if self.site.role == "key" else reader.outputs[0]
        heads = static((operand(reader, 0).shape or ir.Shape([None] * 4))[1])
        if self.site.role == "key":
            matrix = self._matrix(reader, "back", basis.inverses, heads)
            reader.replace_input_with(0, self._turned(reader, made, matrix, f"{self.name}/query"))
            return
        matrix = self._matrix(reader, "back_turned", basis.inverses.swapaxes(-1, -2), heads)
        back = append_node(reader, "MatMul", [made, matrix], name=f"{self.name}/back", like=made, after=True)
        for node, index in list(made.uses()):
            if node is not back:
                node.replace_input_with(index, back.outputs[0])

    def new(self) -> ir.Value:
        """The keys or values that are appended, in the basis in which they are stored."""
        if self.plan.basis is None:
            return self.site.new
        matrix = self._matrix(self.node, "basis", self.plan.basis.matrices.swapaxes(-1, -2), self.site.heads)
        return self._turned(self.node, self.site.new, matrix, f"{self.name}/new")

    def _turned(self, before: ir.Node, value: ir.Value, matrix: ir.Value, name: str) -> ir.Value:
        return append_node(before, "MatMul", [value, matrix], name=f"{name}/turned", like=value).outputs[0]

    def _matrix(self, before: ir.Node, what: str, matrices: np.ndarray, heads: int | None) -> ir.Value:
        """Matrices for so many heads, of which neighbours share one; they are stored once."""
        count, size, _ = matrices.shape
        if count == 1:  # follows from its size
            return ensure_initializer(self.model, f"caches/{what}_{size}", np.ascontiguousarray(matrices[0]))
        name = f"{self.name}/{what}"
        assert heads is not None, "nothing is fitted where the graph does not say how many heads there are"
        if count == heads:
            return add_initializer(self.model, name, np.ascontiguousarray(matrices))
        held = add_initializer(self.model, name, np.ascontiguousarray(matrices[:, None]))
        shapes = [np.array(shape) for shape in ((count, heads // count, size, size), (heads, size, size))]
        wide, flat = (ensure_initializer(self.model, "caches/" + "x".join(map(str, s)), s) for s in shapes)
        copied = append_node(before, "Expand", [held, wide], name=f"{name}/copies").outputs[0]
        return append_node(before, "Reshape", [copied, flat], name=f"{name}/heads").outputs[0]

    def scale(self) -> ir.Value:
        """The static scales."""
        assert self.plan.scale is not None
        fused = self.plan.form == "fused"
        return add_initializer(self.model, f"{self.name}/scale", self.plan.scale.ravel() if fused else self.plan.scale)

    def decode(self) -> None:
        """Quantize what is appended, and decode the whole in front of what reads it."""
        fmt, static = self.plan.format, self.plan.format.static is not None
        if fmt.plain:
            return
        own = [self.scale()] if static else []
        version, features = opset(self.model), self.site.features
        encode, decode = quantizing(fmt, features, version), dequantizing(fmt, features, version)
        for function in (encode, decode):
            if function.identifier() not in self.model.functions:
                add_function(self.model, function)
        made = append_node(
            self.node, encode.name, [self.new(), *own], name=f"{self.name}/codes", domain=DOMAIN,
            outputs=1 if static else 2,
        )  # fmt: skip
        made.outputs[0].type = self.type
        codes = self._joined(self.take_codes(), made.outputs[0], f"{self.name}/all")
        if not static:
            made.outputs[1].name, made.outputs[1].type = f"{self.name}/scales", _SCALES
            own = [self._joined(self._take_scales(), made.outputs[1], self.plan.scales[1])]
            own[0].shape, own[0].type = self._shape(self.present, fmt.scale_numbers(features)), _SCALES
            self.model.graph.outputs.append(own[0])
        held = append_node(
            self.node, decode.name, [codes, *own], name=f"{self.name}/held", domain=DOMAIN, like=self.present
        ).outputs[0]  # fmt: skip
        self.give_codes(codes)
        for reader, index in list(self.present.uses()):
            reader.replace_input_with(index, held)

    def _joined(self, past: ir.Value, new: ir.Value, name: str) -> ir.Value:
        return append_node(self.node, "Concat", [past, new], {"axis": 2}, name=name).outputs[0]

    def take_codes(self) -> ir.Value:
        """Let the graph take codes in place of numbers."""
        graph = self.model.graph
        past = ir.Value(name=self.name, shape=self._shape(self.old, self.width), type=self.type)
        self.old.name = f"{self.name}/float"
        graph.inputs[graph.inputs.index(self.old)] = past
        for node, index in list(self.old.uses()):
            if node is not self.node:
                node.replace_input_with(index, past)
        return past

    def _take_scales(self) -> ir.Value:
        shape = self._shape(self.old, self.plan.format.scale_numbers(self.site.features))
        past = ir.Value(name=self.plan.scales[0], shape=shape, type=_SCALES)
        self.model.graph.inputs.append(past)
        return past

    def give_codes(self, codes: ir.Value) -> None:
        """Let the graph return codes in place of numbers."""
        outputs, name = self.model.graph.outputs, name_of(self.present)
        self.present.name = f"{name}/float"
        outputs[outputs.index(self.present)] = codes
        codes.name, codes.shape, codes.type = name, self._shape(self.present, self.width), self.type
        for reader, _ in list(self.present.uses()):
            if reader.op_type == "Shape":
                self._replace_sizes(reader)

    def _replace_sizes(self, asked: ir.Node) -> None:
        """Compute sizes of the present from those of its parts: a mask may need them before there are codes."""
        past = next(value for value in self.model.graph.inputs if value.name == self.name)
        parts = [(past, 0, 2), (past, 2, 3), (self.site.new, 2, 3)]
        name = f"{self.name}/sizes/{asked.name}"

        def node(op: str, inputs: list[ir.Value], what: str, **attributes: Any) -> ir.Value:
            return append_node(asked, op, inputs, attributes, name=f"{name}/{what}").outputs[0]

        lead, before, more = (node("Shape", [v], str(i), start=a, end=b) for i, (v, a, b) in enumerate(parts))
        whole = node("Concat", [lead, node("Add", [before, more], "length")], "all", axis=0)
        ends = (asked.attributes.get_int("start", 0), asked.attributes.get_int("end", 3))
        bounds = [ensure_initializer(self.model, f"caches/place_{place}", np.array([place])) for place in ends]
        found = append_node(asked, "Slice", [whole, *bounds], name=name, like=asked.outputs[0]).outputs[0]
        ir.convenience.replace_all_uses_with(asked.outputs[0], found)

    def _shape(self, like: ir.Value, width: int) -> ir.Shape | None:
        return None if like.shape is None else ir.Shape([*list(like.shape)[:3], width])


class _Fusing:
    """Attention on packed codes; what all layers share is made once."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._lengths: list[ir.Value] = []
        self._biases: dict[ir.Value, ir.Value] = {}

    def fuse(self, attention: CacheAttention, caches: dict[str, _Cache]) -> None:
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
            kind = {"tensor": "PER_TENSOR", "channel": "PER_CHANNEL"}[fmt.static]
            settings |= {"k_quant_type": kind, "v_quant_type": kind, "kv_cache_bit_width": fmt.bits}
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
