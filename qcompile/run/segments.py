"""Graphs whose weights do not fit into memory: they run a few nodes at a time, each part with its own weights alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompile.errors import InputError, first_line
from qcompile.ir.graph import SMALL
from qcompile.ir.required import constant, name_of
from qcompile.ir.tensors import release
from qcompile.run.input_names import check_names

if TYPE_CHECKING:
    import onnx

__all__ = ["Part", "Segments", "parts", "runner"]

#: Bytes of weights that are in memory at a time; a single larger one is a segment of its own.
SEGMENT_BYTES = 512 << 20


class Segments:
    """A graph as a sequence of smaller ones, with the interface of ``session.Session``.

    Args:
        model: its weights are read when their segment runs, and let go of afterwards.
        taps: names of further values to return.
    """

    def __init__(self, model: ir.Model, taps: Sequence[str] = ()) -> None:
        self._model = model
        graph = model.graph
        self.inputs = [name for name in map(name_of, graph.inputs) if name not in graph.initializers]
        self.outputs = list(dict.fromkeys([*map(name_of, graph.outputs), *taps]))
        self._parts = list(parts(graph, _Fills()))

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name.

        Raises:
            InputError: if inputs are missing, unknown, or refused by an operator.
        """
        check_names(inputs, self.inputs)
        live = dict(inputs)
        readers = Counter(name for part in self._parts for name in part.names)
        readers.update(self.outputs)
        for part in self._parts:
            live |= self._run(part, live, readers)
            for name in part.names:
                readers[name] -= 1
                if not readers[name]:
                    live.pop(name, None)
        constants = self._model.graph.initializers
        return {name: live[name] if name in live else constant(constants[name]).numpy() for name in self.outputs}

    def _run(self, part: Part, live: Mapping[str, np.ndarray], readers: Mapping[str, int]) -> dict[str, np.ndarray]:
        """The outputs of one part that are wanted later."""
        constants = part.constants
        feeds = {name: tensor.numpy() for name, tensor in constants.items()}
        feeds |= {name: live[name] for name in part.names if name in live}
        outputs = [value.name for node in part.nodes for value in node.outputs]
        made = [name for name in outputs if name and readers[name]]
        results = runner(self._model, [ir.to_proto(node) for node in part.nodes], feeds, made, constants)(feeds)
        feeds.clear()
        for tensor in constants.values():
            release(tensor)
        return results


class Part:
    """Consecutive nodes, and what they read from outside."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.reads: dict[ir.Value, None] = {}
        self.made: set[ir.Value] = set()

    def add(self, node: ir.Node) -> None:
        """Put one more node at the end."""
        self.nodes.append(node)
        self.reads |= {value: None for value in _reads(node) if value not in self.made}
        self.made.update(node.outputs)

    @property
    def names(self) -> list[str]:
        """Names of what it reads."""
        return [name_of(value) for value in self.reads]

    @property
    def constants(self) -> dict[str, ir.TensorProtocol]:
        """The constants that it reads, by name."""
        return {name_of(value): value.const_value for value in self.reads if value.const_value is not None}


def parts(graph: ir.Graph, starts: Callable[[ir.Node], bool]) -> Iterator[Part]:
    """All nodes in order, in parts; ``starts`` says of a node whether a new part begins with it."""
    part = Part()
    for node in graph:
        if starts(node) and part.nodes:
            yield part
            part = Part()
        part.add(node)
    yield part


class _Fills:
    """Whether the weights of a node are too many for the part that it would be added to."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, node: ir.Node) -> bool:
        size = sum(value.const_value.nbytes for value in _reads(node) if value.const_value is not None)
        full = self.bytes > 0 and self.bytes + size > SEGMENT_BYTES
        self.bytes = size if full else self.bytes + size
        return full


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node reads: its inputs, and those that its bodies capture from outside."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        bodies: Sequence[ir.Graph] = ()
        if attribute.type == ir.AttributeType.GRAPH:
            bodies = (attribute.value,)
        elif attribute.type == ir.AttributeType.GRAPHS:
            bodies = attribute.value
        for body in bodies:
            own = {*body.inputs, *body.initializers.values(), *(v for inner in body for v in inner.outputs)}
            yield from (value for inner in body for value in _reads(inner) if value not in own)


def runner(
    model: ir.Model, nodes: Sequence[onnx.NodeProto], feeds: Mapping[str, np.ndarray], made: Sequence[str],
    constants: Collection[str], varying: Collection[str] = (),
) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:  # fmt: skip
    """Some nodes of a graph as a function of all that they read.

    Args:
        feeds: its arguments will have the types and shapes of these arrays.
        made: names of its results.
        constants: names of arguments that never change; small ones, such as sizes, become part of the graph.
        varying: names of arguments whose shape may be another one of the same rank.
    """
    import onnx
    import onnxruntime as ort

    def declared(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
        if not isinstance(array, np.ndarray):
            raise InputError(f"the graph cannot be run in parts: '{name}' is no tensor")
        shape = [None] * array.ndim if name in varying else array.shape
        return onnx.helper.make_tensor_value_info(name, int(ir.DataType.from_numpy(array.dtype)), shape)

    within = {name for name in constants if feeds[name].size <= SMALL}
    fixed = [onnx.numpy_helper.from_array(feeds[name], name) for name in sorted(within)]
    inputs = [declared(*feed) for feed in feeds.items() if feed[0] not in within]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "part", inputs, [onnx.ValueInfoProto(name=name) for name in made], fixed),
        functions=[ir.to_proto(function) for function in model.functions.values()],
        opset_imports=[onnx.helper.make_opsetid(*item) for item in model.opset_imports.items()],
        ir_version=model.ir_version,
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other steps want the cores
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own without a common base
        raise _failed(error) from error

    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            given = {name: array for name, array in feeds.items() if name not in within}
            return dict(zip(made, session.run(made, given), strict=True))
        except Exception as error:  # as above
            raise _failed(error) from error

    return run


def _failed(error: Exception) -> InputError:
    return InputError(f"onnxruntime cannot run a part of the graph: {first_line(error)}")
