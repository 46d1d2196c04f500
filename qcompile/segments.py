"""Runs a graph whose weights do not fit into memory: a few nodes at a time, each run with its own weights alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qcompile.errors import InputError, first_line
from qcompile.evaluate import check_names
from qcompile.graph import release

__all__ = ["Segments"]

#: Bytes of weights that are in memory at a time; a single larger one is a segment of its own.
SEGMENT_BYTES = 512 << 20


class Segments:
    """A graph as a sequence of smaller ones, with the interface of ``evaluate.Session``.

    Args:
        model: its weights are read when their segment runs, and let go of afterwards.
        taps: names of further values to return.
    """

    def __init__(self, model: ir.Model, taps: Sequence[str] = ()) -> None:
        self._model = model
        graph = model.graph
        self.inputs = [value.name for value in graph.inputs if value.name not in graph.initializers]
        self.outputs = list(dict.fromkeys([*(value.name for value in graph.outputs), *taps]))
        self._parts = list(_parts(graph))

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name.

        Raises:
            InputError: if inputs are missing, unknown, or refused by an operator.
        """
        check_names(inputs, self.inputs)
        live = dict(inputs)
        readers = Counter(name for part in self._parts for name in {value.name for value in part.reads})
        readers.update(self.outputs)
        for part in self._parts:
            live |= _run(self._model, part, live, {name for name in readers if name not in live})
            for name in {value.name for value in part.reads}:
                readers[name] -= 1
                if not readers[name]:
                    live.pop(name, None)
        constants = self._model.graph.initializers
        return {name: live[name] if name in live else constants[name].const_value.numpy() for name in self.outputs}


class _Part:
    """Consecutive nodes, and what they read from outside."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.reads: list[ir.Value] = []
        self.made: set[ir.Value] = set()
        self.bytes = 0


def _parts(graph: ir.Graph) -> Iterator[_Part]:
    part = _Part()
    for node in graph:
        reads = list(_reads(node))
        size = sum(value.const_value.nbytes for value in reads if value.const_value is not None)
        if part.nodes and part.bytes + size > SEGMENT_BYTES:
            yield part
            part = _Part()
        part.nodes.append(node)
        part.reads += [value for value in reads if value not in part.made]
        part.made.update(node.outputs)
        part.bytes += size
    yield part


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads: its inputs, and what its bodies capture from outside."""
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


def _run(model: ir.Model, part: _Part, live: Mapping[str, np.ndarray], wanted: set[str]) -> dict[str, np.ndarray]:
    """The outputs of one part that are wanted later."""
    import onnx
    import onnxruntime as ort

    constants = {value.name: value.const_value for value in part.reads if value.const_value is not None}
    feeds = {name: tensor.numpy() for name, tensor in constants.items()}
    feeds |= {value.name: live[value.name] for value in part.reads if value.name in live}
    made = [value.name for node in part.nodes for value in node.outputs if value.name in wanted]
    nodes = [ir.to_proto(node) for node in part.nodes]
    read = [_info(name, array) for name, array in feeds.items()]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "part", read, [onnx.ValueInfoProto(name=name) for name in made]),
        functions=[ir.to_proto(function) for function in model.functions.values()],
        opset_imports=[onnx.helper.make_opsetid(*item) for item in model.opset_imports.items()],
        ir_version=model.ir_version,
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results = session.run(made, feeds)
    except Exception as error:  # onnxruntime raises classes of its own without a common base
        raise InputError(f"onnxruntime cannot run a part of the graph: {first_line(error)}") from error
    feeds.clear()
    for tensor in constants.values():
        release(tensor)
    return dict(zip(made, results, strict=True))


def _info(name: str, array: np.ndarray) -> object:
    import onnx

    return onnx.helper.make_tensor_value_info(name, int(ir.DataType.from_numpy(array.dtype)), array.shape)
