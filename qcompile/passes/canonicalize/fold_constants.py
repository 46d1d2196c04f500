"""Fold constants: what depends on no input is computed now, but weights stay where they are until they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import onnx_ir.passes.common as common

from qcompile.ir.functions import DOMAIN
from qcompile.ir.graph import add_initializer, bodies, is_float, is_random, snapshot, unique
from qcompile.ir.required import constant, graph_of, name_of, operand
from qcompile.ir.tensors import Turned
from qcompile.passes.canonicalize import quiet
from qcompile.passes.state import State

__all__ = ["FoldConstants"]


@dataclass(frozen=True)
class FoldConstants:
    """Compute what depends on no input.

    Args:
        most_bytes: where the constants of a graph have as many bytes, only small ones are multiplied out.
        small_bytes: those; transposed weights above this are computed when they are read, and not copied.
    """

    most_bytes: int = 1 << 31
    small_bytes: int = 1 << 20
    name: ClassVar[str] = "fold-constants"

    def apply(self, state: State) -> bool:
        """Rewrite operators on constants, again as long as some go: shapes that are found let more be folded."""
        before, count = snapshot(state.model), _count(state.model) + 1
        _compute_once(state.model)
        while (left := _count(state.model)) < count:
            count = left
            self._fold(state.model)
        _turn_weights(state.model)
        changed = snapshot(state.model) != before
        if changed:
            state.edited()
        return changed

    def _fold(self, model: ir.Model) -> None:
        import onnxscript.optimizer

        def should_fold(node: ir.Node) -> bool | None:
            kept = is_random(node) or node.domain == DOMAIN or _transposes_weight(node, self.small_bytes)
            kept = kept or any(v is not None and v.dtype == ir.DataType.STRING for v in node.inputs)  # have no bytes
            return False if kept else None

        total = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
        limit = self.most_bytes if total < self.most_bytes else self.small_bytes
        with quiet():
            onnxscript.optimizer.fold_constants_ir(
                model, onnx_shape_inference=not _shapes_known(model), input_size_limit=limit, output_size_limit=limit,
                should_fold=should_fold,
            )  # fmt: skip
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        for value in model.graph.initializers.values():
            if value.const_value is not None and value.shape != value.const_value.shape:  # inferred before it was known
                value.shape = ir.Shape(value.const_value.shape.numpy())


def _compute_once(model: ir.Model) -> None:
    """Make one of equal operators on weights, those in bodies included: a weight that is shared stays one constant."""
    known: dict[tuple[object, ...], ir.Node] = {}
    for node in list(model.graph.all_nodes()):
        key = _computed(model, node)
        if key is None:
            continue
        if key in known:
            ir.convenience.replace_all_uses_with(node.outputs, known[key].outputs)
            graph_of(node).remove(node, safe=True)
            continue
        if node.graph is not model.graph:  # it may stand in one of several branches
            graph_of(node).remove(node)
            model.graph.insert_before(model.graph[0], node)
            for value in node.outputs:
                value.name = unique(model, name_of(value))
        known[key] = node


def _computed(model: ir.Model, node: ir.Node) -> tuple[object, ...] | None:
    """What tells an operator on weights from others, ``None`` for other operators and where an output is a graph's."""
    given = [value for value in node.inputs if value is not None]
    weighs = any(is_float(value) and value.shape is not None and value.shape.rank() > 1 for value in given)
    if not weighs or is_random(node) or node.domain == DOMAIN or bodies(node):
        return None
    if any(value.graph is not model.graph or value.const_value is None for value in given):
        return None
    if any(value.is_graph_output() for value in node.outputs):
        return None
    if any(attribute.type not in _PLAIN for attribute in node.attributes.values()):
        return None
    attributes = sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())
    return (node.domain, node.op_type, node.overload, len(node.outputs), *node.inputs, *attributes)


#: Attributes whose text says all of them.
_PLAIN = {ir.AttributeType[name] for name in ("INT", "INTS", "FLOAT", "FLOATS", "STRING", "STRINGS")}


def _count(model: ir.Model) -> int:
    return sum(1 for _ in model.graph.all_nodes())


def _shapes_known(model: ir.Model) -> bool:
    made = (value for node in model.graph.all_nodes() for value in node.outputs)
    return all(value.shape is not None and value.dtype is not None for value in made)


def _transposes_weight(node: ir.Node, small_bytes: int) -> bool:
    """Whether a large constant is transposed for products alone: it stays in its file until it is read."""
    if node.op_type != "Transpose" or node.domain != "" or (tensor := operand(node, 0).const_value) is None:
        return False
    readers = {user.op_type for user, _ in node.outputs[0].uses()}
    return tensor.nbytes > small_bytes and readers <= {"MatMul", "Gemm"}


def _turn_weights(model: ir.Model) -> None:
    """Make transposed weights constants, computed when they are read: a large model is not held in memory."""
    for node in list(model.graph):
        if node.op_type != "Transpose" or node.domain or operand(node, 0).const_value is None:
            continue
        made = node.outputs[0]
        readers = list(made.uses())
        if readers:
            turned = _turned(model, node)
            for reader, index in readers:
                reader.replace_input_with(index, turned)
        if not made.is_graph_output():
            model.graph.remove(node, safe=True)


def _turned(model: ir.Model, node: ir.Node) -> ir.Value:
    weight = operand(node, 0)
    source = constant(weight)
    order = node.attributes.get_ints("perm", list(reversed(range(len(source.shape)))))
    name = f"{weight.name}_T"
    tensor = Turned(source, order, name=name)
    value = add_initializer(model, name, tensor)
    tensor.name = value.name
    return value
