"""Fold constants: what depends on no input is computed now, but weights stay where they are until they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import onnx_ir.passes.common as common

from qcompile.ir.functions import DOMAIN
from qcompile.ir.graph import add_initializer, fingerprint
from qcompile.ir.tensors import Derived, read
from qcompile.passes.state import State

__all__ = ["FoldConstants"]
from qcompile.passes.canonicalize import quiet

#: Constants above this are not multiplied out, but transposed weights are: a site needs its weight itself.
FOLD_LIMIT = 1 << 31

#: Transposed weights above this many bytes are not copied.
PRODUCTS_BYTES = 1 << 20


@dataclass(frozen=True)
class FoldConstants:
    """Compute what depends on no input."""

    name: ClassVar[str] = "fold-constants"

    def apply(self, state: State) -> bool:
        """Rewrites operators on constants."""
        before = fingerprint(state.model)
        _fold(state.model)
        changed = fingerprint(state.model) != before
        if changed:
            state.edited()
        return changed


def _fold(model: ir.Model) -> None:
    import onnxscript.optimizer

    def should_fold(node: ir.Node) -> bool | None:
        return False if node.op_type in _RANDOM or node.domain == DOMAIN or _transposes_weight(node) else None

    small = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    limit = FOLD_LIMIT if small < FOLD_LIMIT else 1 << 20
    made = (value for node in model.graph.all_nodes() for value in node.outputs)
    known = all(value.shape is not None and value.dtype is not None for value in made)
    with quiet():
        onnxscript.optimizer.fold_constants_ir(
            model,
            onnx_shape_inference=not known,
            input_size_limit=limit,
            output_size_limit=limit,
            should_fold=should_fold,
        )
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for node in list(model.graph):
        if node.op_type == "Transpose" and node.domain == "" and node.inputs[0].const_value is not None:
            _fold_transpose(model, node)


_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}


def _transposes_weight(node: ir.Node) -> bool:
    """Whether a large constant is transposed for products alone: it stays in its file until it is read."""
    if node.op_type != "Transpose" or node.domain != "" or (tensor := node.inputs[0].const_value) is None:
        return False
    readers = {user.op_type for user, _ in node.outputs[0].uses()}
    return tensor.nbytes > PRODUCTS_BYTES and readers <= {"MatMul", "Gemm"}


def _fold_transpose(model: ir.Model, node: ir.Node) -> None:
    """A transposed weight, computed when it is read, so that a large model is not held in memory."""
    source = node.inputs[0].const_value
    order = node.attributes.get_ints("perm", list(reversed(range(len(source.shape)))))
    shape = ir.Shape([source.shape[i] for i in order])
    name = f"{node.inputs[0].name}_T"
    tensor = Derived(source, lambda tensor: ir.tensor(read(tensor).transpose(order)), shape, name=name)
    value = add_initializer(model, name, tensor)
    tensor.name = value.name
    ir.convenience.replace_all_uses_with(node.outputs[0], value)
