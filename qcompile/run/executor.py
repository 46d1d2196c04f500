"""The engine: a graph, or a part of it, as a function of torch, on any device, differentiable, in one dtype.

It is written as source from the same table of operators as programs that ship (``qcompile.operators``). What has no row
there runs in onnxruntime, node by node, stops gradients, and is listed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import torch
import torch.nn.functional as F
from torch import Tensor

from qcompile.errors import InputError, TargetError
from qcompile.ir.graph import node_name
from qcompile.ir.required import constant, name_of
from qcompile.operators import plain
from qcompile.operators.library import attention, operators
from qcompile.operators.names import Names
from qcompile.operators.precision import MIXED, ONE, Precision
from qcompile.operators.statements import Statement, finish
from qcompile.operators.table import STANDARD
from qcompile.operators.writer import Program
from qcompile.run.input_names import check_names
from qcompile.run.segments import Part, runner

__all__ = ["Executor", "Hook"]

#: Sees a value; what it returns, if anything, takes the place of the value.
Hook = Callable[[Tensor], Tensor | None]


class Executor:
    """A graph as a function of named tensors.

    Weights are read when they are first used, and kept on the device; ``weights`` has them by the names of constants: a
    tensor put there beforehand is taken instead, and may require gradients.

    Args:
        model: the graph; it stays as it is.
        inputs: names of values that are given, by default the inputs of the graph.
        outputs: names of values to return, by default the outputs of the graph.
        hooked: names of values that hooks may be given for.
        dtype: of floats: float32, float64, or bfloat16, in which what it would spoil stays float32.
        device: where it computes.

    Raises:
        InputError: if there is no value of a name, or a value is needed that follows from none of those given.
    """

    def __init__(
        self, model: ir.Model, *, inputs: Sequence[str] | None = None, outputs: Sequence[str] | None = None,
        hooked: Collection[str] = (), dtype: torch.dtype = torch.float32, device: str = "cpu",
    ) -> None:  # fmt: skip
        self.device, self.dtype = torch.device(device), dtype
        self.weights: dict[str, Tensor] = {}
        own = model.clone()
        if inputs is not None or outputs is not None:
            _cut(own, inputs, outputs)
        _prepare(own)
        precision = MIXED if dtype.itemsize < 4 else ONE
        program = _Program(own, hooked, precision)
        inner = [value for value in own.graph.inputs if not value.is_initializer()]
        self.inputs = [name_of(value) for value in inner]
        self._kinds = [dtype if value.dtype in precision.narrow else torch.float32 for value in inner]
        self.outputs = [name_of(value) for value in own.graph.outputs]
        self.foreign = {node_name(node): reason for node, _, reason in program.foreign}
        self.hooked = frozenset(program.hooks)
        self.source = program.source()
        self._foreign = [_Foreign(own, node, part) for node, part, _ in program.foreign]
        self._constants = program.weights
        self._wide: dict[str, Tensor] = {}
        self._forward = _compiled(self.source)

    def __call__(self, given: Mapping[str, Any], hooks: Mapping[str, Hook] | None = None) -> dict[str, Tensor]:
        """Outputs by name.

        Args:
            given: tensors or arrays; floats are brought to ``dtype``.
            hooks: by name of values, all of them among ``hooked``.

        Raises:
            InputError: if inputs are missing or unknown, or a hook is for a value that the graph does not compute so.
        """
        check_names(given, self.inputs)
        lost = sorted(set(hooks or ()) - self.hooked)
        if lost:
            raise InputError(f"the engine has no hook at {', '.join(lost)}")
        frame = _Frame(self, hooks or {}, self._foreign)
        tensors = (self._tensor(given[name], kind) for name, kind in zip(self.inputs, self._kinds, strict=True))
        with torch.backends.cudnn.flags(allow_tf32=False):  # float32 is to be float32: convolutions are not by default
            values = self._forward(frame, *tensors)
        return dict(zip(self.outputs, values, strict=True))

    def _tensor(self, value: Any, dtype: torch.dtype) -> Tensor:
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        return tensor.to(self.device, dtype if tensor.dtype.is_floating_point else None)

    def weight(self, attribute: str) -> Tensor:
        """A constant of the graph on the device, by the name that it has in the source."""
        value, mode = self._constants[attribute]
        name = value.name or attribute
        if mode == "wide":
            if name in self.weights:
                return self.weights[name].float()
            if name not in self._wide:
                self._wide[name] = self._tensor(_array(value), torch.float32)
            return self._wide[name]
        if name not in self.weights:
            self.weights[name] = self._tensor(_array(value), self.dtype)
        return self.weights[name]


class _Frame:
    """The ``self`` of generated source: constants are its attributes."""

    def __init__(self, executor: Executor, hooks: Mapping[str, Hook], foreign: Sequence[_Foreign]) -> None:
        self.device, self.dtype = executor.device, executor.dtype
        self._executor, self._hooks, self._foreign = executor, hooks, foreign

    def __getattr__(self, name: str) -> Tensor:
        return self._executor.weight(name)

    def hook(self, name: str, value: Tensor) -> Tensor:
        """A value after its hook, if it has one now."""
        found = self._hooks.get(name)
        replaced = None if found is None else found(value)
        return value if replaced is None else replaced

    def apart(self, number: int, *values: Tensor) -> tuple[Tensor, ...]:
        """The outputs of a node that onnxruntime runs."""
        return self._foreign[number](values, self.device, torch.promote_types(self.dtype, torch.float32))


class _Foreign:
    """A node that onnxruntime runs, on copies of tensors."""

    def __init__(self, model: ir.Model, node: ir.Node, part: Part) -> None:
        self._model, self._node, self._part = model, node, part
        self._made = [name_of(value) for value in node.outputs if value.name]
        self._runs: dict[tuple[Any, ...], Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]] = {}

    def __call__(self, values: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        feeds = {}
        for value, tensor in zip(self._part.reads, values, strict=True):
            array = tensor.detach().to("cpu", torch.float32 if tensor.dtype is torch.bfloat16 else tensor.dtype).numpy()
            kind = value.dtype.numpy() if value.dtype is not None else array.dtype
            feeds[name_of(value)] = np.ascontiguousarray(array.astype(kind))
        key = tuple((array.dtype, array.ndim) for array in feeds.values())
        if key not in self._runs:
            protos, constants = [ir.to_proto(self._node)], self._part.constants
            self._runs[key] = runner(self._model, protos, feeds, self._made, constants, varying=set(feeds))
        found = self._runs[key](feeds)
        results = (torch.from_numpy(np.array(found[name])) for name in self._made)
        return tuple(x.to(device, dtype if x.dtype.is_floating_point else None) for x in results)


class _Program(Program):
    """The generated function of a graph, with hooks, and with the nodes that onnxruntime runs."""

    def __init__(self, model: ir.Model, hooked: Collection[str], precision: Precision) -> None:
        self.foreign: list[tuple[ir.Node, Part, str]] = []
        self.hooks: list[str] = []
        self._hooked = frozenset(hooked)
        names = Names()
        for name in ("hook", "apart", "itertools", "plain"):
            names.reserve(name)
        super().__init__(model, names, STANDARD, precision, "torch")

    def _declare(self, value: ir.Value) -> str:
        name = super()._declare(value)
        self._offer(value, name)
        return name

    def _emit_node(self, node: ir.Node) -> None:
        before = len(self.statements)
        try:
            super()._emit_node(node)
        except TargetError as error:
            del self.statements[before:]
            self._emit_foreign(node, str(error))
        for value in node.outputs:
            if value in self._variables:
                self._offer(value, self._variables[value])

    def _emit_foreign(self, node: ir.Node, reason: str) -> None:
        part = Part()
        part.add(node)
        given = [self.own(value) for value in part.reads]
        stated = [(value, value.dtype) for value in node.outputs]
        targets = self.bind(node, not self.precision.mixed)
        for value, dtype in stated:
            value.type = None if dtype is None else ir.TensorType(dtype)  # what is not stated, onnxruntime decides
        call = ", ".join([str(len(self.foreign)), *given])
        self.foreign.append((node, part, reason))
        self.emit(f"{', '.join(targets)}, *_ = self.apart({call})", targets)

    def _offer(self, value: ir.Value, variable: str) -> None:
        if value.name in self._hooked and value.name not in self.hooks:
            self.hooks.append(value.name)
            text = f"        {variable} = self.hook({value.name!r}, {variable})"
            self.statements.append(Statement((variable,), text, kept=True))

    def kernel(self, name: str) -> str:
        return f"plain.{name}"

    def source(self) -> str:
        """Source of ``forward``; ``self`` is a ``_Frame``."""
        words = [word for text in self.results for word in text.replace(".", " ").split()]
        body = "\n".join(finish(self.statements, words))
        arguments = ", ".join(["self", *self.inputs])
        return f"def forward({arguments}):\n{body}\n        return ({', '.join([*self.results, ''])})\n"


def _compiled(source: str) -> Callable[..., tuple[Tensor, ...]]:
    namespace: dict[str, Any] = {
        "torch": torch, "F": F, "math": math, "itertools": itertools, "operators": operators, "attention": attention,
        "plain": plain,
    }  # fmt: skip
    exec(compile(source, "<graph>", "exec"), namespace)
    return namespace["forward"]


def _array(value: ir.Value) -> np.ndarray:
    array = constant(value).numpy()
    return array.astype(np.float32) if value.dtype is ir.DataType.BFLOAT16 else array


def _prepare(model: ir.Model) -> None:
    if model.functions:
        common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if any(value.shape is None for node in model.graph for value in node.outputs):
        common.ShapeInferencePass()(model)


def _cut(model: ir.Model, inputs: Sequence[str] | None, outputs: Sequence[str] | None) -> None:
    """Let a graph begin at some of its values and end at others.

    Raises:
        InputError: if there is no value of a name, or one is needed that follows from none of those given.
    """
    graph = model.graph
    values = {v.name: v for v in [*graph.inputs, *graph.initializers.values(), *(o for n in graph for o in n.outputs)]}
    lost = sorted({*(inputs or ()), *(outputs or ())} - {name for name in values if name})
    if lost:
        raise InputError(f"the graph has no value named {', '.join(lost)}")
    if outputs is not None:
        graph.outputs[:] = [values[name] for name in outputs]
    if inputs is not None:
        kept = [value for value in graph.inputs if value.is_initializer()]
        given = [values[name] if values[name].producer() is None else _begun(values[name]) for name in inputs]
        former = [value for value in graph.inputs if not value.is_initializer() and value not in given]
        graph.inputs[:] = [*given, *kept]
        common.RemoveUnusedNodesPass()(model)
        needed = sorted(name_of(value) for value in former if value.uses() or value.is_graph_output())
        if needed:
            raise InputError(f"the part needs {', '.join(needed)} besides what is given")


def _begun(value: ir.Value) -> ir.Value:
    """An input in the place of a value that the graph computes."""
    given = ir.Value(name=value.name, shape=value.shape, type=value.type)
    ir.convenience.replace_all_uses_with(value, given, replace_graph_outputs=True)
    value.name = f"{value.name}/before"
    return given
