"""Fold tables: a norm right behind an embedding is done once to the table, row by row, instead of to every token.

Its scale would stand between the table and the stream, where no rotation passes it. A table that something else reads
too, such as a tied head, keeps its rows there: the lookup gets a constant of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.analysis.folding import rewrite
from qcompile.analysis.rules.normalization import SCALED_NORMS
from qcompile.analysis.spaces import KEPT
from qcompile.ir.graph import add_initializer, is_float, label
from qcompile.ir.required import constant, operand, rank_of
from qcompile.passes.state import State

__all__ = ["FoldTables"]

#: Rows that are normalized at a time.
PIECE = 4096


@dataclass(frozen=True)
class FoldTables:
    """Part tables from the products that read them, and apply norms to the rows of the tables in front of them."""

    name: ClassVar[str] = "fold-tables"

    def apply(self, state: State) -> bool:
        """Rewrite the graph in place; its function stays the same."""
        nodes = list(state.model.graph)
        changed = [_part(state.model, node) for node in nodes] + [_fold(state, node) for node in nodes]
        if any(changed):
            state.edited()
        return any(changed)


def _part(model: ir.Model, lookup: ir.Node) -> bool:
    """Give a lookup a constant of its own where a product reads its table: the two change basis apart.

    Both hold the same tensor. ``tie-heads`` brings them together again.
    """
    if lookup.op_type != "Gather" or lookup.domain or lookup.attributes.get_int("axis", 0) != 0:
        return False
    table = operand(lookup, 0)
    kinds = {node.op_type for node, _ in table.uses()}
    if table.const_value is None or not is_float(table) or rank_of(table) != 2 or not kinds & {"MatMul", "Gemm"}:
        return False
    lookup.replace_input_with(0, add_initializer(model, f"{table.name}_rows", constant(table)))
    return True


def _fold(state: State, node: ir.Node) -> bool:
    lookup = _lookup_before(node)
    parameters = None if lookup is None else _parameters(node)
    if lookup is None or parameters is None:
        return False
    table = operand(lookup, 0)
    if len(table.uses()) > 1 or table.is_graph_output():
        reason = "its rows are normalized for the lookup alone, so what shares it needs a copy"
        state.decline(label(lookup), f"sharing the table '{table.name}'", reason)
        table = add_initializer(state.model, f"{table.name}_normalized", constant(table))
        lookup.replace_input_with(0, table)
    rewrite(state.model, table, lambda array: _normalized(array, *parameters))
    output = node.outputs[0]
    ir.convenience.replace_all_uses_with(output, lookup.outputs[0], replace_graph_outputs=True)
    state.model.graph.remove(node, safe=True)
    return True


def _lookup_before(node: ir.Node) -> ir.Node | None:
    """The lookup of rows whose only reader is this norm over features, of which nothing but the result is used."""
    if SCALED_NORMS.get((node.domain, node.op_type), (False, 0))[1] != 1 or any(out.uses() for out in node.outputs[1:]):
        return None
    value = operand(node, 0)
    lookup = value.producer()
    if lookup is None or lookup.op_type != "Gather" or lookup.domain or lookup.attributes.get_int("axis", 0) != 0:
        return None
    table = operand(lookup, 0)
    known = table.const_value is not None and is_float(table) and rank_of(table) == 2
    axis = node.attributes.get_int("axis", -1)
    last = axis == -1 or (value.shape is not None and axis == len(value.shape) - 1)
    readers = [reader for reader, _ in value.uses() if reader.op_type != "Shape"]
    known = known and KEPT not in lookup.metadata_props
    return lookup if known and last and readers == [node] and not value.is_graph_output() else None


def _parameters(node: ir.Node) -> tuple[bool, np.ndarray, np.ndarray, float] | None:
    """Whether the mean is subtracted, scale, shift and epsilon of a norm; ``None`` if they are not constant."""
    centered = SCALED_NORMS[node.domain, node.op_type][0]
    values = [value for value in node.inputs[1:] if value is not None]
    if any(value.const_value is None for value in values):
        return None
    arrays = [constant(value).numpy().astype(np.float64) for value in values]
    epsilon = node.attributes.get_float("epsilon", 1e-5) if not node.domain else float(arrays.pop())
    scale = arrays[0]
    return centered, scale, arrays[1] if centered and len(arrays) > 1 else np.zeros_like(scale), epsilon


def _normalized(table: np.ndarray, centered: bool, scale: np.ndarray, shift: np.ndarray, epsilon: float) -> np.ndarray:
    for start in range(0, len(table), PIECE):
        rows = table[start : start + PIECE]
        if centered:
            rows -= rows.mean(-1, keepdims=True)
        rows *= scale / np.sqrt(np.square(rows).mean(-1, keepdims=True) + epsilon)
        rows += shift
    return table
