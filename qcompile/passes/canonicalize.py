"""Canonicalize: one spelling per idea, whatever exporter wrote the graph.

Functions of other domains are inlined, constants lifted and folded, identities removed, and normalizations that an
exporter spelled out become one operator: ``RMSNormalization`` and ``LayerNormalization``, or functions of the same
meaning in graphs of older opsets. Attention, rotary embeddings and activations need no canonical form: the rules
follow their pieces.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import onnx_ir.passes.common as common

from qcompile.errors import InputError
from qcompile.ir.graph import DOMAIN, Derived, add_initializer, distinguish, read
from qcompile.ir.norms import fuse_norm, split_skip
from qcompile.passes.pipeline import State
from qcompile.passes.projections import split_projection
from qcompile.analysis.spaces import learn_sizes

__all__ = ["Canonicalize"]

#: Constants above this are not multiplied out, but transposed weights are: a site needs its weight itself.
FOLD_LIMIT = 1 << 31

#: Transposed weights above this many bytes are not copied.
PRODUCTS_BYTES = 1 << 20


@dataclass(frozen=True)
class Canonicalize:
    """Bring a graph into the form that the analysis reads."""

    name: ClassVar[str] = "canonicalize"

    def apply(self, state: State) -> bool:
        """Always reports a change: inlining and folding rename values."""
        model = state.model
        common.RemoveInitializersFromInputsPass()(model)  # constants that a caller might have replaced
        _modernize(model)
        _inline(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.LiftSubgraphInitializersToMainGraphPass()(model)
        _fold_constants(model)
        _drop_identities(model)
        common.RemoveUnusedNodesPass()(model)
        common.NameFixPass()(model)
        distinguish(model)
        for node in list(model.graph):
            split_skip(model, node)
        learn_sizes(model)
        for node in list(model.graph):
            if node.graph is not None:
                fuse_norm(model, node)
                split_projection(model, node)
        state.edited()
        return True


#: The oldest operators that functions can be written in: axes of Squeeze and ReduceSum are inputs, Pad's pads too.
_OLDEST = 13


def _modernize(model: ir.Model) -> None:
    """Bring older operators to that version; where ONNX's own converter cannot, they stay and lowering refuses them."""
    version = model.opset_imports.get("", _OLDEST)
    if version < 9 and any(node.op_type == "Scan" for node in model.graph.all_nodes()):
        raise InputError("the graph has a Scan as operators of version 8 had it, with a batch of its own: export to 9")
    if version < _OLDEST:
        from onnxscript.version_converter import ConvertVersionPass

        with _quiet():
            ConvertVersionPass(_OLDEST, fallback=True)(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxscript warns of what it leaves alone, which is none of the user's business."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _inline(model: ir.Model) -> None:
    kept = {key: function for key, function in model.functions.items() if function.domain == DOMAIN}
    for key in kept:
        del model.functions[key]
    if model.functions:
        common.InlinePass()(model)
    model.functions.update(kept)


def _fold_constants(model: ir.Model) -> None:
    import onnxscript.optimizer

    def should_fold(node: ir.Node) -> bool | None:
        return False if node.op_type in _RANDOM or node.domain == DOMAIN or _transposes_weight(node) else None

    small = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    limit = FOLD_LIMIT if small < FOLD_LIMIT else 1 << 20
    made = (value for node in model.graph.all_nodes() for value in node.outputs)
    known = all(value.shape is not None and value.dtype is not None for value in made)
    with _quiet():
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


def _drop_identities(model: ir.Model) -> None:
    """Remove what changes nothing from the main graph, but for those that give an output its name."""
    for node in list(model.graph):
        kept = _kept_input(node)
        if kept is not None and not node.outputs[0].is_graph_output():
            ir.convenience.replace_all_uses_with(node.outputs[0], kept)
            model.graph.remove(node, safe=True)


#: Operators that a number changes nothing in: the number, and whether the operands may be exchanged.
_NEUTRAL = {"Add": (0, True), "Sub": (0, False), "Mul": (1, True), "Div": (1, False), "Pow": (1, False)}


def _kept_input(node: ir.Node) -> ir.Value | None:
    """What a node passes on as it is: Identity, or products with one and sums with zero, which Paddle writes."""
    if node.op_type == "Identity" and not node.domain:
        return node.inputs[0]
    if node.op_type not in _NEUTRAL or node.domain or None in node.inputs:
        return None
    number, exchangeable = _NEUTRAL[node.op_type]
    for index in (0, 1) if exchangeable else (0,):
        kept, other = node.inputs[index], node.inputs[1 - index]
        tensor = other.const_value
        if tensor is None or tensor.size != 1 or kept.shape is None or len(other.shape) > len(kept.shape):
            continue
        if kept.const_value is None and kept.dtype == other.dtype and tensor.numpy().item() == number:
            return kept
    return None
