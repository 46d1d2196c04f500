"""A copy of a graph, or of a part of it, as the engine reads it: all constants named, no functions that it lacks."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common

from qcompile.errors import InputError
from qcompile.ir.required import name_of
from qcompile.run.generated import FUNCTIONS

__all__ = ["flat_copy"]


def flat_copy(model: ir.Model, inputs: Sequence[str] | None, outputs: Sequence[str] | None) -> ir.Model:
    """The copy, from and to those values; by default from the graph's inputs to its outputs.

    Raises:
        InputError: if there is no value of a name, or one is needed that follows from none of those given.
    """
    model = model.clone()
    if inputs is not None or outputs is not None:
        _cut(model, inputs, outputs)
    _flatten(model)
    return model


def _flatten(model: ir.Model) -> None:
    if model.functions:
        common.InlinePass(lambda function: (function.domain, function.name) not in FUNCTIONS)(model)
        _copy_constants(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if any(value.shape is None for node in model.graph for value in node.outputs):
        common.ShapeInferencePass()(model)


def _copy_constants(model: ir.Model) -> None:
    """Give operators tensors of their own: functions of the graph that was cloned have the same, and keep the names."""
    for node in model.graph.all_nodes():
        held = node.attributes.get("value") if node.op_type == "Constant" else None
        if held is not None and (tensor := held.as_tensor()).dtype is not ir.DataType.STRING:
            own = ir.Tensor(tensor.numpy(), tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)
            node.attributes["value"] = ir.AttrTensor("value", own)


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
