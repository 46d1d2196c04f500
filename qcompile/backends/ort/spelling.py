"""Operators spelled as onnxruntime runs them fastest on a CPU; what they compute stays.

It fuses a sum and the norm behind it into one operator, which takes one element after the other: six times as long as
the two, which take a vector at a time (onnxruntime 1.31, 128 rows of 384). It knows such a sum by its name, and takes
as long for ``Sum`` as for ``Add``.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass

from qcompile.backends.ort.emitter import Emitter
from qcompile.ir.functions import DOMAIN
from qcompile.ir.module_paths import SCOPES
from qcompile.ir.required import constant, operands

__all__ = ["drop_notes", "share_vectors", "spell"]

#: Norms that onnxruntime fuses with the sums in front of them.
_NORMS = ("LayerNormalization", "SimplifiedLayerNormalization")

#: Norms that graphs call functions of ours for, because their version of the standard has none: onnxruntime has.
_OURS = {"RMSNorm": "SimplifiedLayerNormalization", "LayerNorm": "LayerNormalization"}

#: Types of floats that numpy knows, and that both ``Add`` and ``Sum`` add.
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)

#: What exporters note beside operators and values; paths of modules are shown with an artifact.
_NOTES = ("pkg.", "namespace")


def spell(emitter: Emitter, model: ir.Model) -> None:
    """Rewrite norms that are functions of ours, and sums in front of norms."""
    for node in list(model.graph.all_nodes()):
        if node.domain == DOMAIN and node.op_type in _OURS:
            _name_norm(emitter, node)
    for node in model.graph.all_nodes():
        if not node.domain and node.op_type in _NORMS:
            _keep_apart(node)
    RemoveUnusedFunctionsPass()(model)


def _name_norm(emitter: Emitter, node: ir.Node) -> None:
    *given, epsilon = operands(node)
    emitter.at(node)
    like = float(constant(epsilon).numpy())
    emitter.replace(node, emitter.op(node, _OURS[node.op_type], *given, axis=-1, epsilon=like))


def _keep_apart(norm: ir.Node) -> None:
    """Let the sum that a norm reads be no ``Add``."""
    added = operands(norm)[0].producer()
    if added is not None and (added.domain, added.op_type) == ("", "Add") and operands(norm)[0].dtype in _FLOATS:
        added.op_type = "Sum"


def share_vectors(model: ir.Model) -> None:
    """Store vectors of floats that are equal once, such as what folding made of the biases of layers that are one."""
    known: dict[tuple[object, ...], ir.Value] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or value.dtype not in _FLOATS or len(tensor.shape) > 1 or value.is_graph_output():
            continue
        first = known.setdefault((value.dtype, tuple(tensor.shape), tensor.tobytes()), value)
        if first is not value and not value.is_graph_input():
            ir.convenience.replace_all_uses_with(value, first)
            del model.graph.initializers[name]


def drop_notes(model: ir.Model) -> None:
    """Leave what an exporter noted beside operators and values, stack traces among it, out of the file."""
    for node in model.graph.all_nodes():
        _drop(node.metadata_props)
        for value in node.outputs:
            _drop(value.metadata_props)
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        _drop(value.metadata_props)


def _drop(notes: MutableMapping[str, str]) -> None:
    for key in [key for key in notes if key.startswith(_NOTES) and key != SCOPES]:
        del notes[key]
