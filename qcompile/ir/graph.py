"""Small edits of a graph that every pass needs, and the functions of the ``qcompile`` domain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from threading import Lock, RLock
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir

from qcompile.errors import InputError

__all__ = [
    "DOMAIN", "Derived", "add_function", "add_initializer", "append_node", "check_graph", "check_weights",
    "distinguish", "ensure_function", "ensure_initializer", "initializers", "is_read", "name_outputs",
    "open_dimensions", "opset", "read", "release", "tidy", "weights_of",
]  # fmt: skip

#: The domain of our own operators. Each is a function whose body is standard ONNX.
DOMAIN = "qcompile"


def opset(model: ir.Model) -> int:
    """The version of the standard operators that the graph uses."""
    return model.opset_imports.get("", 18)


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
    value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def ensure_initializer(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    """The constant of that name, made at its first use: for contents that follow from the name."""
    found = model.graph.initializers.get(name)
    return found if found is not None else add_initializer(model, name, array)


#: Held while a file is mapped for a tensor, or let go of: that may happen in several threads.
_MAPPING = RLock()


class Derived(ir.LazyTensor):
    """A constant that is computed from another one when it is read.

    Args:
        source: the other one.
        compute: makes the constant of it; called from any thread, so it reads with ``read``.
        shape: of the result.
        name: of the result.
        keep: whether the result stays in memory; without, it is computed again at each read.
        dtype: of the result, if it is not that of the source.
    """

    def __init__(
        self, source: ir.TensorProtocol, compute: Callable[[ir.TensorProtocol], ir.TensorProtocol],
        shape: ir.Shape, *, name: str | None, keep: bool = False, dtype: ir.DataType | None = None,
    ) -> None:  # fmt: skip
        super().__init__(partial(compute, source), dtype or source.dtype, shape, name=name, cache=keep)
        self.source = source
        self._computing = Lock()

    def _evaluate(self) -> ir.TensorProtocol:
        with self._computing:  # once, whoever asks
            return super()._evaluate()


def read(tensor: ir.TensorProtocol) -> np.ndarray:
    """The array of a tensor, also while other threads read or release it."""
    if isinstance(tensor, Derived):
        return tensor.numpy()
    with _MAPPING:
        return tensor.numpy()


def release(tensor: ir.TensorProtocol) -> None:
    """Let go of the pages of a memory-mapped tensor, so that large models stream through."""
    while isinstance(tensor, Derived):
        tensor = tensor.source
    if isinstance(tensor, ir.ExternalTensor):
        try:
            with _MAPPING:
                tensor.release()
        except BufferError:  # an array over it is still in use somewhere; its pages stay until that is gone
            return


def initializers(model: ir.Model) -> Iterator[tuple[str, ir.Value]]:
    """Constants by name, those of bodies among them."""
    for graph in model.graphs():
        yield from ((name, value) for name, value in graph.initializers.items() if value.const_value is not None)


def check_graph(model: ir.Model, path: str) -> None:
    """Refuse graphs without outputs or sense.

    Raises:
        InputError: naming the file and what is wrong with it.
    """
    if not model.graph.outputs:
        raise InputError(f"'{path}' has no outputs")
    if (flaw := _flaw_of(model)) is not None:
        raise InputError(f"'{path}' {flaw}")


def weights_of(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Constants of floating-point numbers by name."""
    found = {name: value.const_value for name, value in initializers(model)}
    return {name: tensor for name, tensor in found.items() if tensor.dtype.is_floating_point() and tensor.size}


def check_weights(weights: Mapping[str, ir.TensorProtocol], path: str) -> bool:
    """Refuse weights with NaN; returns whether none holds infinity.

    It maps files by itself, so that others may read the same tensors meanwhile.

    Raises:
        InputError: naming the file and the weight.
    """
    found = {_is_finite(name, tensor, path) for name, tensor in weights.items()}
    return False not in found


def _is_finite(name: str, tensor: ir.TensorProtocol, path: str) -> bool:
    array = _mapped(tensor)
    # A sum is not finite if any element is not, and needs no array of flags. It may also overflow: then look closer.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum(dtype=np.float32)):
            return True
    wide = array.astype(np.float64)
    if np.isnan(wide).any():
        raise InputError(f"weight '{name}' of '{path}' holds NaN")
    return bool(np.isfinite(wide).all())


def _mapped(tensor: ir.TensorProtocol) -> np.ndarray:
    if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype.bitwidth < 8:
        return read(tensor)
    dtype = tensor.dtype.numpy().newbyteorder("<") if tensor.dtype.bitwidth > 8 else tensor.dtype.numpy()
    return np.memmap(tensor.path, dtype, "r", tensor.offset or 0, tensor.shape.numpy())


def _flaw_of(model: ir.Model) -> str | None:
    """What makes a graph unusable: a value that nothing makes, or outputs of one name."""
    names = [value.name for value in model.graph.outputs]
    for name in names:
        if names.count(name) > 1:
            return f"has several outputs named '{name}': give each a name of its own"
    for node in model.graph.all_nodes():
        for value in node.inputs:
            if value is not None and value.graph is None and value.producer() is None:
                return f"has no value '{value.name}', which {node.op_type} '{node.name}' reads"
    return None


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
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and value.const_value.name != name:
            value.const_value.name = name


def append_node(
    before: ir.Node,
    op: str,
    inputs: Sequence[ir.Value | None],
    attributes: dict | None = None,
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
    graph = before.graph
    if graph in _Names.of:
        _Names.of[graph].made.add(name)
    (graph.insert_after if after else graph.insert_before)(before, node)
    return node


def ensure_function(model: ir.Model, name: str, text: str) -> str:
    """Register a function of our domain, written in ONNX's textual syntax, once.

    Args:
        model: the graph that will call it.
        name: its operator type.
        text: signature and body, without the domain and opset header, e.g.
            ``"(x, scale) => (y) { y = Mul(x, scale) }"``.
    """
    import onnx.parser

    if (DOMAIN, name, "") not in model.functions:
        header = f'<domain: "{DOMAIN}", opset_import: ["" : {opset(model)}]>'
        proto = onnx.parser.parse_function(f"{header} {name} {text}")
        add_function(model, ir.from_proto(proto))
    return name


def add_function(model: ir.Model, function: ir.Function) -> None:
    """Register a function and import its domain."""
    model.functions[function.identifier()] = function
    model.opset_imports.setdefault(function.domain, 1)
    model.graph.opset_imports.setdefault(function.domain, 1)
