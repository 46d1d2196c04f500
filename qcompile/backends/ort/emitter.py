"""The tool by which kernels edit the graph: new nodes before a site, constants and quantized inputs shared by sites."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.ir.functions import DOMAIN, add_function, opset
from qcompile.ir.graph import add_initializer, append_node
from qcompile.ir.required import graph_of, name_of, producer_of
from qcompile.targets.target import Target

__all__ = ["Emitter", "Parts"]

#: What a weight is stored as, by name.
Parts = Mapping[str, ir.TensorProtocol | np.ndarray]


class Emitter:
    """One lowering under way.

    Args:
        model: the graph that is edited.
        target: whose options kernels read.
    """

    def __init__(self, model: ir.Model, target: Target) -> None:
        self.model = model
        self.target = target
        self.opset = opset(model)
        self.stored = 0
        self.graph: ir.Graph = model.graph
        self._made: dict[tuple[Any, ...], ir.Value] = {}
        self._functions: dict[tuple[Any, ...], str] = {}
        self._constants: dict[tuple[Any, ...], list[tuple[ir.Value, np.ndarray]]] = defaultdict(list)
        self._names = {value.name for node in model.graph.all_nodes() for value in node.outputs}
        self._names |= {value.name for value in model.graph.inputs}

    def op(
        self, before: ir.Node, op: str, *inputs: ir.Value | None, domain: str = "", hint: str = "", **attributes: Any
    ) -> ir.Value:
        """The first output of a new node placed before another, with a name made from ``hint``."""
        name = self.unique(hint or f"{before.name}/{op}")
        return append_node(before, op, inputs, attributes, name=name, domain=domain).outputs[0]

    def ops(self, before: ir.Node, op: str, *inputs: ir.Value, outputs: Sequence[str]) -> Sequence[ir.Value]:
        """All outputs of a new node of the standard placed before another, with those names."""
        made = append_node(before, op, inputs, name=self.unique(outputs[0]), outputs=len(outputs)).outputs
        for value, name in zip(made[1:], outputs[1:], strict=True):
            value.name = self.unique(name)
        return made

    def call(self, before: ir.Node, function: str, *inputs: ir.Value, hint: str = "", **attributes: Any) -> ir.Value:
        """The output of a new call of one of our functions."""
        return self.op(before, function, *inputs, domain=DOMAIN, hint=hint, **attributes)

    def unique(self, name: str) -> str:
        """The name, or with a number behind it where it is taken."""
        number, wanted = 0, name
        while name in self._names or name in self.model.graph.initializers:
            number += 1
            name = f"{wanted}_{number}"
        self._names.add(name)
        return name

    def at(self, node: ir.Node) -> None:
        """A site is lowered from here on: what it shares stays within its graph, or the body that it stands in."""
        self.stored, self.graph = 0, graph_of(node)

    def shared(self, key: tuple[Any, ...], make: Callable[[], ir.Value]) -> ir.Value:
        """A value made at its first use. Sites come in the order of the graph, so the first use is the earliest."""
        key = self.graph, *key
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def made(self, key: tuple[Any, ...]) -> ir.Value | None:
        """A value that sites share, if one has made it."""
        return self._made.get((self.graph, *key))

    def constant(self, name: str, tensor: ir.TensorProtocol | np.ndarray) -> ir.Value:
        """An initializer. One of equal content is used again: tied weights are stored once."""
        tensor = ir.Tensor(tensor) if isinstance(tensor, np.ndarray) else tensor
        content = _content(tensor)
        alike = self._constants[tensor.dtype, tuple(tensor.shape), _sample(content)]
        for value, known in alike:
            if np.array_equal(known, content):
                return value
        tensor.name = self.unique(name)
        alike.append((add_initializer(self.model, tensor.name, tensor), content))
        return alike[-1][0]

    def apart(self, name: str, tensor: np.ndarray) -> ir.Value:
        """An initializer that nothing else reads, though there be others of equal content."""
        self.stored += tensor.nbytes
        return add_initializer(self.model, self.unique(name), ir.Tensor(tensor))

    def weights(self, weight: ir.Value, parts: Parts) -> list[ir.Value]:
        """Initializers for the parts of a packed weight, named after it; what they take is added to ``stored``."""
        self.stored += sum(tensor.nbytes for tensor in parts.values())
        return [self.constant(f"{name_of(weight)}.{part}", tensor) for part, tensor in parts.items()]

    def define(self, make: Callable[..., ir.Function], *arguments: Any) -> str:
        """Register a function at its first use, and return its name."""
        key = (make, *arguments)
        if key not in self._functions:
            function = make(*arguments, self.opset)
            add_function(self.model, function)
            self._functions[key] = function.name
        return self._functions[key]

    def replace(self, node: ir.Node, new: ir.Value) -> None:
        """Let a new value stand for the first output of a node, under its name, and remove the node."""
        old = node.outputs[0]
        name, new.shape, new.type = old.name, old.shape, old.type
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        weights = [value for value in node.inputs if value is not None and value.is_initializer()]
        graph_of(node).remove(node, safe=True)
        old.name, new.name = None, name
        producer_of(new).name = node.name
        for value in weights:
            self.drop(value)

    def anchor(self, node: ir.Node) -> ir.Node:
        """A node right behind another, through which all reads its first result, to be replaced by what it is to be."""
        value, name = node.outputs[0], name_of(node.outputs[0])
        made = append_node(node, "Identity", [value], name=self.unique(f"{name}/handed_on"), like=value, after=True)
        shown = value.is_graph_output()
        ir.convenience.replace_all_uses_with(value, made.outputs[0], replace_graph_outputs=True)
        made.replace_input_with(0, value)
        if shown:
            value.name = self.unique(f"{name}/raw")
            made.outputs[0].name = name
        return made

    def drop(self, value: ir.Value) -> None:
        """Remove an initializer that nothing reads any more; its content goes too, though an analysis may know it."""
        constants, name = self.model.graph.initializers, name_of(value)
        if not value.uses() and not value.is_graph_output() and name in constants:
            del constants[name]
            value.const_value = None


def _content(tensor: ir.TensorProtocol) -> np.ndarray:
    """The bytes of a tensor, not copied."""
    return np.asarray(tensor.raw).reshape(-1).view(np.uint8)


def _sample(content: np.ndarray) -> bytes:
    """Some of the bytes, by which most tensors differ already; an odd step meets every byte of a number."""
    return content[:: content.size // 256 | 1].tobytes()
