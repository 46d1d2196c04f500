"""Operators spelled as onnxruntime runs them fastest on a CPU; what they compute stays.

It fuses a sum and the norm behind it into one operator, which takes one element after the other: six times as long as
the two, which take a vector at a time (onnxruntime 1.31, 128 rows of 384). It knows such a sum by its name, and takes
as long for ``Sum`` as for ``Add``. A product of integers adds a bias while it still holds its sums, but it fuses none
that stands behind.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass

from qcompile.backends.ort.emitter import Emitter
from qcompile.ir.functions import DOMAIN
from qcompile.ir.graph import add_initializer, append_node
from qcompile.ir.module_paths import SCOPES, innermost
from qcompile.ir.required import constant, graph_of, operands
from qcompile.ir.transform_nodes import halved, is_transform

__all__ = ["drop_notes", "halve_matrices", "share_vectors", "spell"]

#: Norms that onnxruntime fuses with the sums in front of them.
_NORMS = ("LayerNormalization", "SimplifiedLayerNormalization")

#: Norms that graphs call functions of ours for, because their version of the standard has none: onnxruntime has.
_OURS = {"RMSNorm": "SimplifiedLayerNormalization", "LayerNorm": "LayerNormalization"}

_CONTRIB = "com.microsoft"

#: Of ``MatMulIntegerToFloat``: the place of the scales of channels, and operands where none but a bias can follow.
_SCALES, _WITHOUT_BIAS = 3, 5

#: Operators that onnxruntime fuses with a bias in front of them.
_WITH_BIAS = ("Gelu", "FastGelu")

#: Types of floats that numpy knows, and that both ``Add`` and ``Sum`` add.
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)

#: What exporters note beside operators and values; paths of modules are shown with an artifact.
_NOTES = ("pkg.", "namespace")

#: Axes of a matrix for each block, by which transforms take bytes; those that all blocks share are few.
_BLOCKS = 3


def spell(emitter: Emitter, model: ir.Model) -> None:
    """Rewrite norms that are functions of ours, sums in front of norms, and biases behind products of integers."""
    for node in list(model.graph.all_nodes()):
        if node.domain == DOMAIN and node.op_type in _OURS:
            _name_norm(emitter, node)
    for node in model.graph.all_nodes():
        if not node.domain and node.op_type in _NORMS:
            _keep_apart(node)
    for node in list(model.graph.all_nodes()):
        if (node.domain, node.op_type) == (_CONTRIB, "MatMulIntegerToFloat") and len(node.inputs) == _WITHOUT_BIAS:
            _take_bias(emitter, node)
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


def _take_bias(emitter: Emitter, product: ir.Node) -> None:
    """Let a product add the vector that is added to it, unless what reads the sum would be fused with that."""
    y = product.outputs[0]
    if len(y.uses()) != 1 or y.is_graph_output():
        return
    ((added, index),) = y.uses()
    if (added.domain, added.op_type) != ("", "Add"):
        return
    bias, total = added.inputs[1 - index], added.outputs[0]
    scales = operands(product)[_SCALES]
    if bias is None or bias.const_value is None or bias.dtype != ir.DataType.FLOAT or bias.shape != scales.shape:
        return
    if any(node.op_type in _WITH_BIAS for node, _ in total.uses()):
        return
    emitter.at(added)
    given = [*product.inputs, None, bias]
    emitter.replace(added, emitter.op(added, product.op_type, *given, domain=_CONTRIB))
    graph_of(product).remove(product, safe=True)


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


def halve_matrices(model: ir.Model) -> None:
    """Store matrices of transforms whose entries are float16's in that: onnxruntime widens them as it loads them."""
    graph, named = model.graph, model.graph.initializers
    read = {value for node in graph.all_nodes() if is_transform(node) for value in node.inputs if value is not None}
    for name, value in list(named.items()):
        tensor = value.const_value
        if value not in read or tensor is None or value.dtype != ir.DataType.FLOAT or len(tensor.shape) < _BLOCKS:
            continue
        if (half := halved(tensor.numpy())) is None:
            continue
        stored = add_initializer(model, f"{name}_half", half)
        cast = append_node(graph[0], "Cast", [stored], {"to": ir.DataType.FLOAT}, name=f"{name}_read", like=value)
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        del named[name]


def drop_notes(model: ir.Model) -> None:
    """Leave what an exporter noted beside operators and values out of the file, but for the module of each."""
    for node in model.graph.all_nodes():
        _drop(node.metadata_props)
        for value in node.outputs:
            _drop(value.metadata_props)
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        _drop(value.metadata_props)


def _drop(notes: MutableMapping[str, str]) -> None:
    for key in [key for key in notes if key.startswith(_NOTES) and key != SCOPES]:
        del notes[key]
    if SCOPES in notes:
        notes[SCOPES] = innermost(notes[SCOPES])
