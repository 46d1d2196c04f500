"""Nodes that have no row in the table of operators: onnxruntime runs them, on copies of tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from qcompile.errors import InputError, first_line
from qcompile.ir.graph import SMALL, is_float, label, node_name
from qcompile.ir.required import name_of
from qcompile.ir.tensors import read

if TYPE_CHECKING:
    import onnx

__all__ = ["Foreign", "Part", "stopping"]


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
    def given(self) -> list[ir.Value]:
        """The values that it reads and that are no constants."""
        return [value for value in self.reads if value.const_value is None]

    @property
    def constants(self) -> dict[str, ir.TensorProtocol]:
        """The constants that it reads, by name."""
        return {name_of(value): value.const_value for value in self.reads if value.const_value is not None}


class Foreign:
    """A node that onnxruntime runs, on copies of tensors."""

    def __init__(self, model: ir.Model, node: ir.Node, part: Part) -> None:
        self._model, self._node, self._part = model, node, part
        self._made = [name_of(value) for value in node.outputs if value.name]
        self._runs: dict[tuple[Any, ...], Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]] = {}

    def __call__(self, values: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        feeds: dict[str, Any] = {name: read(tensor) for name, tensor in self._part.constants.items()}
        for value, tensor in zip(self._part.given, values, strict=True):
            feeds[name_of(value)] = _fed(tensor, self._kind_of(value, tensor))
        key = tuple(map(_kind, feeds.values()))
        if key not in self._runs:
            node, constants = ir.to_proto(self._node), self._part.constants
            kinds = {name_of(value): value.dtype.numpy() for value in self._part.given if value.dtype is not None}
            self._runs[key] = _runner(self._model, node, feeds, self._made, constants, kinds)
        found = self._runs[key](feeds)
        return tuple(_result(found[name], device, dtype) for name in self._made)

    def _kind_of(self, value: ir.Value, given: Any) -> np.dtype[Any] | None:
        """The type that a value states; a float without one has that of the floats beside it, if they share one."""
        if value.dtype is not None:
            return value.dtype.numpy()
        beside = {other.dtype for other in self._part.reads if other.dtype is not None and is_float(other)}
        floats = isinstance(given, Tensor) and given.is_floating_point()
        return beside.pop().numpy() if floats and len(beside) == 1 else None


def stopping(model: ir.Model, foreign: Collection[str], values: Collection[str]) -> list[str]:
    """Nodes that onnxruntime runs and that stop the gradients of values, as messages name them.

    Args:
        foreign: names of all that it runs.
        values: names of values of the main graph.
    """
    reached, found = set(values), []
    for node in model.graph:
        bodies = any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
        if bodies or not reached.isdisjoint(value.name for value in node.inputs if value is not None):
            reached |= {value.name for value in node.outputs if value.name and (value.dtype is None or is_float(value))}
            found += [label(node)] if node_name(node) in foreign else []
    return found + sorted(set(foreign) - {node_name(node) for node in model.graph})  # those in bodies


def _fed(value: Any, kind: np.dtype[Any] | None) -> Any:
    """A tensor as onnxruntime takes it, or a sequence of them."""
    if isinstance(value, list):
        return [_fed(element, kind) for element in value]
    if isinstance(value, np.ndarray):  # strings
        return value
    array = value.detach().to("cpu", torch.float32 if value.dtype is torch.bfloat16 else value.dtype).numpy()
    return np.array(array, kind, order="C")  # unlike ``ascontiguousarray``, it gives a number no axis


def _kind(value: Any) -> tuple[Any, ...]:
    if isinstance(value, list):
        return ("sequence", *(_kind(element)[0] for element in value[:1]))
    return value.dtype, value.ndim


def _result(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, list):
        return [_result(element, device, dtype) for element in value]
    if value.dtype == object:  # strings
        return value
    tensor = torch.from_numpy(np.array(value))
    return tensor.to(device, dtype if tensor.dtype.is_floating_point else None)


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


def _runner(
    model: ir.Model, node: onnx.NodeProto, feeds: Mapping[str, Any], made: Sequence[str], constants: Collection[str],
    kinds: Mapping[str, np.dtype[Any]],
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:  # fmt: skip
    """A node of a graph as a function of all that it reads.

    Args:
        feeds: its arguments will have the types and ranks of these arrays, or lists of arrays.
        made: names of its results.
        constants: names of arguments that never change; small ones, such as sizes, become part of the graph.
        kinds: types of arguments, for lists that are empty.
    """
    import onnx
    import onnxruntime as ort

    def declared(name: str, value: Any) -> onnx.ValueInfoProto:
        array = (
            value if isinstance(value, np.ndarray) else value[0] if value else np.zeros(0, kinds.get(name, np.float32))
        )
        kind = int(ir.DataType.from_numpy(array.dtype))
        if isinstance(value, list):
            return onnx.helper.make_tensor_sequence_value_info(name, kind, None)
        shape = array.shape if name in constants else [None] * array.ndim  # some operators want to know their weights
        return onnx.helper.make_tensor_value_info(name, kind, shape)

    within = {name for name in constants if feeds[name].size <= SMALL}
    fixed = [onnx.numpy_helper.from_array(feeds[name], name) for name in sorted(within)]
    inputs = [declared(*feed) for feed in feeds.items() if feed[0] not in within]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph([node], "part", inputs, [onnx.ValueInfoProto(name=name) for name in made], fixed),
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

    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        try:
            given = {name: array for name, array in feeds.items() if name not in within}
            return dict(zip(made, session.run(made, given), strict=True))
        except Exception as error:  # as above
            raise _failed(error) from error

    return run


def _failed(error: Exception) -> InputError:
    return InputError(f"onnxruntime cannot run a node of the graph by itself: {first_line(error)}")
