"""One cache of a graph that is being lowered: its inputs and outputs become codes, and what reads it decodes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.analysis.cache_sites import CacheSite
from qcompile.backends.ort.cache_bodies import dequantizing, quantizing
from qcompile.ir.functions import DOMAIN, add_function, opset
from qcompile.ir.graph import add_initializer, append_node, ensure_initializer, static
from qcompile.ir.required import name_of, operand
from qcompile.targets.cache_plans import CachePlan

__all__ = ["CacheInGraph"]

_FLOAT = ir.TensorType(ir.DataType.FLOAT)

#: The end of what reaches to the end.
_END = np.iinfo(np.int64).max


class CacheInGraph:
    """One cache of a graph that is being lowered."""

    def __init__(self, model: ir.Model, site: CacheSite, plan: CachePlan) -> None:
        self.model, self.site, self.plan = model, site, plan
        self.node, self.old, self.present = site.pair.node, site.pair.past, site.pair.present
        self.name, self.width = site.name, site.features // plan.format.per_byte
        self.type = ir.TensorType(ir.DataType.from_numpy(plan.format.stored))
        self.kept: list[ir.Value] = []

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
        fmt, version, features = self.plan.format, opset(self.model), self.site.features
        if fmt.plain:
            return
        static, numbers = [self.scale()] if fmt.static else [], fmt.scale_numbers(features)
        encode, decode = quantizing(fmt, features, version), dequantizing(fmt, features, version)
        for function in (encode, decode):
            if function.identifier() not in self.model.functions:
                add_function(self.model, function)
        past = self.take_codes()
        first, leaving, recent = self._kept(self.new())
        made = append_node(
            self.node, encode.name, [leaving, *static], name=f"{self.name}/codes", domain=DOMAIN,
            outputs=2 if numbers else 1,
        )  # fmt: skip
        made.outputs[0].type = self.type
        codes, own = self._joined(past, made.outputs[0], f"{self.name}/all"), []
        if numbers:
            kind = ir.TensorType(ir.DataType.from_numpy(fmt.stored_scales))
            made.outputs[1].name, made.outputs[1].type = f"{self.name}/scales", kind
            own = [self._joined(self._take(self.plan.scales[0], numbers, kind), made.outputs[1], self.plan.scales[1])]
            self._give(own[0], numbers, kind)
        given = [codes, *own, *static]
        held = append_node(self.node, decode.name, given, name=f"{self.name}/held", domain=DOMAIN).outputs[0]
        held.shape, held.type = self._shape(self.present, features), _FLOAT
        if fmt.keeps:
            held = self._concat([*first, held, *recent], f"{self.name}/whole", self.present)
        self.give_codes(codes)
        for reader, index in list(self.present.uses()):
            reader.replace_input_with(index, held)

    def _kept(self, new: ir.Value) -> tuple[list[ir.Value], ir.Value, list[ir.Value]]:
        """The first tokens, which stay float32; those that get codes now; and the newest, which are float32 still."""
        fmt, first, recent = self.plan.format, [], []
        if fmt.first:
            joined = self._joined(self.kept[0], new, f"{self.name}/from_first")
            first.append(self._give_kept(joined, 0, fmt.first, self.plan.first[1]))
            new = self._sliced(joined, fmt.first, _END, f"{self.name}/behind_first")
        if fmt.recent:
            joined = self._joined(self.kept[-1], new, f"{self.name}/to_recent")
            recent.append(self._give_kept(joined, -fmt.recent, _END, self.plan.recent[1]))
            new = self._sliced(joined, 0, -fmt.recent, f"{self.name}/leaving")
        return first, new, recent

    def _give_kept(self, joined: ir.Value, start: int, end: int, name: str) -> ir.Value:
        found = self._sliced(joined, start, end, name)
        self._give(found, self.site.features, _FLOAT, f"kept{start or end}")
        return found

    def _sliced(self, value: ir.Value, start: int, end: int, name: str) -> ir.Value:
        bounds = [ensure_initializer(self.model, f"caches/place_{at}", np.array([at])) for at in (start, end, 2)]
        return append_node(self.node, "Slice", [value, *bounds], name=name).outputs[0]

    def _joined(self, past: ir.Value, new: ir.Value, name: str) -> ir.Value:
        """The past with what is new, as the graph had it: behind it, or where it says."""
        if self.site.grows:
            return self._concat([past, new], name)
        inputs, settings = [past, new, *self.node.inputs[2:]], dict(self.node.attributes)
        attributes = {key: attribute.value for key, attribute in settings.items()}
        return append_node(self.node, self.node.op_type, inputs, attributes, name=name).outputs[0]

    def _concat(self, parts: list[ir.Value], name: str, like: ir.Value | None = None) -> ir.Value:
        return append_node(self.node, "Concat", parts, {"axis": 2}, name=name, like=like).outputs[0]

    def take_codes(self) -> ir.Value:
        """Let the graph take codes in place of numbers."""
        graph, fmt = self.model.graph, self.plan.format
        past = ir.Value(name=self.name, shape=self._shape(self.old, self.width), type=self.type)
        self.old.name = f"{self.name}/float"
        graph.inputs[graph.inputs.index(self.old)] = past
        for (name, _), place in ((self.plan.first, fmt.first), (self.plan.recent, -fmt.recent)):
            if place:
                self.kept.append(self._take(name, self.site.features, _FLOAT, f"kept{place}"))
        for node, index in list(self.old.uses()):
            if node is self.node:
                continue
            if self.kept:
                self._replace_sizes(node, [])
            else:
                node.replace_input_with(index, past)
        return past

    def _take(self, name: str, width: int, kind: ir.TensorType, length: str = "packed") -> ir.Value:
        """A further input of the graph, which has as many tokens as there are codes unless another length is named."""
        past = ir.Value(name=name, shape=self._shape(self.old, width, length), type=kind)
        self.model.graph.inputs.append(past)
        return past

    def _give(self, value: ir.Value, width: int, kind: ir.TensorType, length: str = "packed") -> None:
        """Let the graph return a further value."""
        value.shape, value.type = self._shape(self.present, width, length), kind
        self.model.graph.outputs.append(value)

    def give_codes(self, codes: ir.Value) -> None:
        """Let the graph return codes in place of numbers."""
        outputs, name = self.model.graph.outputs, name_of(self.present)
        self.present.name = f"{name}/float"
        outputs[outputs.index(self.present)] = codes
        codes.name, codes.shape, codes.type = name, self._shape(self.present, self.width), self.type
        for reader, _ in list(self.present.uses()):
            if reader.op_type == "Shape":
                self._replace_sizes(reader, [self.site.new] if self.site.grows else [])

    def _replace_sizes(self, asked: ir.Node, more: list[ir.Value]) -> None:
        """Compute sizes of a cache from those of its parts: a mask may need them before there are codes."""
        past = next(value for value in self.model.graph.inputs if value.name == self.name)
        parts = [(past, 0, 2), *((value, 2, 3) for value in [past, *self.kept, *more])]
        name = f"{self.name}/sizes/{asked.name}"

        def node(op: str, inputs: list[ir.Value], what: str, **attributes: Any) -> ir.Value:
            return append_node(asked, op, inputs, attributes, name=f"{name}/{what}").outputs[0]

        lead, *lengths = (node("Shape", [v], str(i), start=a, end=b) for i, (v, a, b) in enumerate(parts))
        length = node("ReduceSum", [node("Concat", lengths, "lengths", axis=0)], "length")
        whole = node("Concat", [lead, length], "all", axis=0)
        ends = (asked.attributes.get_int("start", 0), asked.attributes.get_int("end", 3))
        bounds = [ensure_initializer(self.model, f"caches/place_{place}", np.array([place])) for place in ends]
        found = append_node(asked, "Slice", [whole, *bounds], name=name, like=asked.outputs[0]).outputs[0]
        ir.convenience.replace_all_uses_with(asked.outputs[0], found)

    def _shape(self, like: ir.Value, width: int, length: str = "packed") -> ir.Shape | None:
        """The shape of a part of the cache; lengths of parts have names where they are not that of the whole."""
        if like.shape is None:
            return None
        batch, heads, own = list(like.shape)[:3]
        return ir.Shape([batch, heads, f"{own}_{length}" if self.plan.format.keeps else own, width])
