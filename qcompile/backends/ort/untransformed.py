"""Takes the online transforms out of an artifact's graph, to learn what they cost: the rest computes nothing of use."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from qcompile.ir.graph import tidy
from qcompile.ir.required import constant, graph_of, operand
from qcompile.ir.tensors import initializers
from qcompile.ir.transform_nodes import is_transform

__all__ = ["take_out"]


def take_out(graph: Path, to: Path) -> int | None:
    """Write the graph without its online transforms; returns the bytes of their constants, ``None`` if it has none."""
    model = ir.load(graph)
    nodes = [node for node in model.graph.all_nodes() if is_transform(node)]
    if not nodes:
        return None
    before = _bytes(model)
    for node in nodes:
        ir.convenience.replace_all_uses_with(node.outputs[0], operand(node, 0), replace_graph_outputs=True)
        graph_of(node).remove(node, safe=True)
    tidy(model)
    ir.save(model, to, external_data=f"{to.name}.data")
    return before - _bytes(model)


def _bytes(model: ir.Model) -> int:
    return sum(constant(value).nbytes for _, value in initializers(model))
