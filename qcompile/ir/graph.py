"""Small edits of a graph that every pass needs, and the functions of the ``qcompile`` domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir

from qcompile.errors import GraphError, InputError
from qcompile.ir.required import graph_of
from qcompile.ir.text import refusal

__all__ = [
    "SMALL", "add_initializer", "append_node", "bodies", "check_graph", "distinguish", "drop_unused",
    "ensure_initializer", "is_float", "is_random", "is_read", "label", "name_outputs", "name_sizes",
    "name_standard_domain", "node_name", "open_dimensions", "state_outputs", "static", "tidy",
]  # fmt: skip

#: Constants of at most this many elements are read during analysis, to learn shapes and scalars.
SMALL = 4096


class _Names:
    """The names of a graph's values that nodes make, and how far names with a number appended have got."""

    of: WeakKeyDictionary[ir.Graph, _Names] = WeakKeyDictionary()

    def __init__(self, graph: ir.Graph) -> None:
        self.made = {value.name for node in graph.all_nodes() for value in node.outputs}
        self.made.update(value.name for value in graph.inputs)
        self.numbers: dict[str, int] = {}


def unique(model: ir.Model, name: str) -> str:
    """``name``, with a number appended if a value of the graph has it already."""
    if model.graph not in _Names.of:
        _Names.of[model.graph] = _Names(model.graph)
    names, constants = _Names.of[model.graph], model.graph.initializers
    found, number = name, names.numbers.get(name, 0)
    while found in constants or found in names.made:
        number += 1
        found = f"{name}_{number}"
    names.numbers[name] = number
    return found


def add_initializer(model: ir.Model, name: str, array: np.ndarray | ir.TensorProtocol) -> ir.Value:
    """A new constant; its name is made unique."""
    name = unique(model, name)
    tensor = ir.Tensor(np.asarray(array, order="C"), name=name) if isinstance(array, np.ndarray) else array
    shape, dtype = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
    value = ir.Value(name=name, shape=shape, type=dtype, const_value=tensor)
    model.graph.register_initializer(value)
    return value


def ensure_initializer(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    """The constant of that name, made at its first use: for contents that follow from the name."""
    found = model.graph.initializers.get(name)
    return found if found is not None else add_initializer(model, name, array)


def check_graph(model: ir.Model, path: str) -> None:
    """Refuse graphs without outputs or sense.

    Raises:
        InputError: naming the file and what is wrong with it; GraphError where that is a value that nothing makes.
    """
    if not model.graph.outputs:
        raise InputError(f"'{path}' has no outputs")
    names = [value.name for value in model.graph.outputs]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"'{path}' has several outputs named '{name}': give each a name of its own")
    for node in model.graph.all_nodes():
        for value in node.inputs:
            if value is not None and value.graph is None and value.producer() is None:
                raise refusal(GraphError, _MISSING, node, path=path, value=value.name or "")


_MISSING = "'{path}' has no value '{value}', which {op} '{name}' reads"


def is_read(node: ir.Node, index: int) -> bool:
    """Whether something reads an output of the node."""
    found = node.outputs[index] if index < len(node.outputs) else None
    return found is not None and (bool(found.uses()) or found.is_graph_output())


def open_dimensions(model: ir.Model) -> None:
    """Take a dimension of less than nothing for what Paddle means by it: one that is known at run time alone."""
    values = [value for node in model.graph.all_nodes() for value in node.outputs]
    for value in (*model.graph.inputs, *values):
        if value.shape is not None and any(isinstance(dim, int) and dim < 0 for dim in value.shape):
            value.shape = ir.Shape([None if isinstance(dim, int) and dim < 0 else dim for dim in value.shape])


def name_standard_domain(model: ir.Model) -> None:
    """Write the standard domain in one way: ``ai.onnx`` is another name for the empty one."""
    graphs = (model.graph, *(function.graph for function in model.functions.values()))
    for imports in (graph.opset_imports for graph in graphs):
        if "ai.onnx" in imports:
            imports.setdefault("", imports.pop("ai.onnx"))
            imports.pop("ai.onnx", None)


def state_outputs(model: ir.Model, source: ir.Model) -> None:
    """State of the outputs what the source states of its own: callers may read the names of dimensions."""
    for value, other in zip(model.graph.outputs, source.graph.outputs, strict=True):
        if other.shape is None:
            continue
        own = other.shape if value.shape is None or len(value.shape) != len(other.shape) else value.shape
        pairs = zip(own, other.shape, strict=True)
        value.shape = ir.Shape([have if isinstance(have, int) or _unnamed(said) else said for have, said in pairs])


def _unnamed(dim: object) -> bool:
    return isinstance(dim, ir.SymbolicDim) and dim.value is None


def name_sizes(graph: ir.Graph) -> None:
    """Give a name of its own to each size of an input that has none.

    onnxruntime loads values that have sizes without names in a time that grows with the square of their number.
    """
    for value in graph.inputs:
        if value.shape is not None and any(map(_unnamed, value.shape)):
            sizes = [f"{value.name}.{axis}" if _unnamed(size) else size for axis, size in enumerate(value.shape)]
            value.shape = ir.Shape(sizes)


def name_outputs(model: ir.Model, names: Sequence[str]) -> None:
    """Give the graph's outputs those names, in order; a value that cannot take one is copied by Identity."""
    outputs = model.graph.outputs
    if [value.name for value in outputs] == [*names]:
        return
    for name, other in ir.convenience.create_value_mapping(model.graph).items():
        if name in names and other not in outputs and other.producer() is not None:
            other.name = f"{name}_inner"
    seen: set[ir.Value] = set()
    for place, (value, name) in enumerate(zip(list(outputs), names, strict=True)):
        if value in seen or (value.producer() is None and value.name != name):  # twice, an input, a constant
            node = ir.Node("", "Identity", [value], name=f"{name}_copy")
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            model.graph.append(node)
            outputs[place] = value = node.outputs[0]
        seen.add(value)
    renamed = [(value, name) for value, name in zip(outputs, names, strict=True) if value.name != name]
    for value, _ in renamed:
        value.name = None  # names may be exchanged: none is taken while they are given
    for value, name in renamed:
        value.name = name


def distinguish(model: ir.Model) -> None:
    """Give operators and values names of their own over all bodies: two branches may use one name for two things."""
    _Names.of.pop(model.graph, None)
    nodes = list(model.graph.all_nodes())
    taken = {value.name for value in (*model.graph.inputs, *model.graph.initializers.values())}
    bodies = [graph for graph in model.graph.subgraphs() if graph is not model.graph]
    made = [value for graph in bodies for value in graph.inputs] + [value for node in nodes for value in node.outputs]
    for things, known in ((made, taken), (nodes, set())):
        kept = [thing for thing in things if thing.graph is model.graph]
        known |= {thing.name for thing in kept}
        for thing in (thing for thing in things if thing.graph is not model.graph):
            wanted, number = thing.name, 0
            while thing.name in known:
                number += 1
                thing.name = f"{wanted}_{number}"
            known.add(thing.name)


def tidy(model: ir.Model) -> None:
    """Drop what nothing reads, and give every constant's tensor the name of its value."""
    drop_unused(model)
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and value.const_value.name != name:
            value.const_value.name = name


def drop_unused(model: ir.Model) -> None:
    """Drop what nothing reads: of what the bodies of a dropped operator read from outside, too, nothing is left."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    owners = [node for graph in graphs for node in graph.all_nodes() if bodies(node)]
    RemoveUnusedNodesPass()(model)
    dropped = [node for node in owners if node.graph is None]
    for inner in [inner for node in dropped for body in bodies(node) for inner in body.all_nodes()]:
        for place in range(len(inner.inputs)):  # onnx_ir lets go of the inputs of the operator alone
            inner.replace_input_with(place, None)
    if dropped:
        drop_unused(model)


def append_node(
    before: ir.Node,
    op: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    name: str,
    domain: str = "",
    outputs: int = 1,
    like: ir.Value | None = None,
    after: bool = False,
) -> ir.Node:
    """A new node placed before (or after) an existing one; its first output takes shape and type of ``like``."""
    attrs = ir.convenience.convert_attributes(attributes or {})
    node = ir.Node(domain, op, inputs, attrs, num_outputs=outputs, name=name)
    node.outputs[0].name = name
    if like is not None:
        node.outputs[0].shape, node.outputs[0].type = like.shape, like.type
    graph = graph_of(before)
    if graph in _Names.of:
        _Names.of[graph].made.add(name)
    (graph.insert_after if after else graph.insert_before)(before, node)
    return node


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The graphs that a node holds: the branches of an If, the body of a Loop or Scan."""
    found = [attribute for attribute in node.attributes.values() if attribute.type == ir.AttributeType.GRAPH]
    return [attribute.as_graph() for attribute in found]


def static(dim: object) -> int | None:
    """A dimension as an integer, ``None`` if symbolic."""
    return dim if isinstance(dim, int) else None


def is_float(value: ir.Value) -> bool:
    """Whether a value holds floating-point numbers."""
    return value.dtype is not None and value.dtype.is_floating_point()


_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}


def is_random(node: ir.Node) -> bool:
    """Whether an operator may draw random numbers: Dropout does where it is told that it trains."""
    trains = node.inputs[2] if node.op_type == "Dropout" and len(node.inputs) > 2 else None
    told = trains is not None and (trains.const_value is None or bool(trains.const_value.numpy().any()))
    return not node.domain and (node.op_type in _RANDOM or told)


def node_name(node: ir.Node) -> str:
    """The name of an operator, or of its first output where it has none."""
    return node.name or node.outputs[0].name or "?"


def label(node: ir.Node) -> str:
    """A node in a message: ``MatMul 'layers.0.q_proj'``."""
    return f"{node.op_type} '{node_name(node)}'"


def snapshot(model: ir.Model) -> list[object]:
    """All that is written of a graph, to be compared with itself later; constants count by identity."""
    parts: list[object] = [dict(model.opset_imports), dict(model.metadata_props)]
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        parts += map(_written, (*graph.inputs, *graph.outputs))
        for node in graph.all_nodes():
            parts += [node.domain, node.op_type, node.overload, node.name, dict(node.metadata_props)]
            parts += [value.name if value is not None else None for value in node.inputs]
            parts += map(_written, node.outputs)
            for attribute in node.attributes.values():
                parts += _written_attribute(attribute)
    for graph in model.graphs():
        parts += [(*_written(value), value.const_value) for value in graph.initializers.values()]
    return [*parts, *model.functions]


def _written(value: ir.Value) -> tuple[object, ...]:
    """A value as it is written: nothing of one without a name, and of a shape without a type only that there is one."""
    if not value.name:
        return (value.name,)
    shape = value.shape is not None and (value.type is None or tuple(value.shape))
    return value.name, value.type, shape, tuple(value.metadata_props.items())


def _written_attribute(attribute: ir.Attr) -> list[object]:
    """An attribute as it is written; of a body its inputs and outputs, for its nodes are among the graph's."""
    content = attribute.value
    if attribute.type == ir.AttributeType.GRAPH:
        content = [_written(value) for value in (*attribute.as_graph().inputs, *attribute.as_graph().outputs)]
    return [attribute.name, attribute.type, content, attribute.ref_attr_name]
