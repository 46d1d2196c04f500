"""Tie heads: a head whose weight is the embedding table again reads the table, so that it is stored once.

The scale of the last norm was folded into the head's weight, which set it apart from the table. It becomes a product
in front of the head again, behind a boundary: the stream may rotate on, and ``rotate`` brings what the head reads into
the basis of the table's rows. Where the table was centered besides, what its rows lost is added to the head's output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.analysis.boundaries import BODY, OP
from qcompile.analysis.folding import Folded, lines
from qcompile.analysis.spaces import KEPT, Site
from qcompile.ir.functions import DOMAIN, ensure_function
from qcompile.ir.graph import add_initializer, append_node
from qcompile.ir.required import constant, dtype_of, operand, shape_of
from qcompile.ir.tensors import Turned, read, release
from qcompile.passes.state import State

__all__ = ["TieHeads"]

#: Rows that are compared at a time.
PIECE = 4096


@dataclass(frozen=True)
class TieHeads:
    """Let a head share the table that tokens are looked up in.

    Args:
        fewest_rows: of a table, for each of its features, below which a scale stays in the head: the product and the
            transforms in front of it would take as much as the table.
    """

    fewest_rows: float = 4.0
    name: ClassVar[str] = "tie-heads"

    def apply(self, state: State) -> bool:
        """Mark heads, and put scales in front of those that have one in their weight; the function stays the same."""
        sites = state.analyze_apart().sites
        tables = [site for site in sites if site.input is None and site.axis_in == 0 and site.is_matrix]
        tables = [site for site in tables if KEPT not in site.node.metadata_props]
        changed = [_tie(state, head, tables, self.fewest_rows) for head in _heads(sites)]
        if any(changed):
            state.edited()
        return any(changed)


def _heads(sites: Iterable[Site]) -> Iterator[Site]:
    """Products with a matrix of their own, whose input has its features last, that share no table yet."""
    for site in sites:
        alone = len(site.weight.uses()) == 1 and not site.weight.is_graph_output() and not site.nested
        alone = alone and KEPT not in site.node.metadata_props
        plain = site.node.op_type in ("MatMul", "Gemm") and operand(site.node, 1) is site.weight
        plain = plain and not site.node.attributes.get_int("transA", 0) and site.is_matrix
        if alone and plain and site.stored is site.weight:
            yield site


def _tie(state: State, head: Site, tables: Iterable[Site], fewest_rows: float) -> bool:
    held = constant(head.weight)
    scale = held.scale(head.axis_in) if isinstance(held, Folded) else None
    plain = held.source if isinstance(held, Folded) and scale is not None else held
    for table in tables:
        means = _means(constant(table.weight), plain, head.axis_in)
        if means is None:
            continue
        rows, features = table.shape
        if scale is not None and rows < fewest_rows * features:
            reason = f"it has {rows} rows of {features} features: the scale in front of the head would take as much"
            state.decline(head.name, f"sharing the table '{table.weight.name}'", reason)
            return False
        head.share(table.weight)
        if scale is None and not means.any():
            head.lay_out(table.weight)
            return False  # no operator is another one, and no constant has another content
        scaled = None if scale is None else _put_in_front(state.model, head, scale)
        if scaled is not None and means.any():
            _put_behind(state.model, head, scaled, means)
        head.lay_out(table.weight)
        return True
    return False


def _means(table: ir.TensorProtocol, weight: ir.TensorProtocol, axis_in: int) -> np.ndarray | None:
    """By row, how much a weight exceeds the table, features along ``axis_in``; ``None`` if they differ otherwise.

    They are zeros, or the means of all rows where the table was centered for norms that subtract no mean.
    """
    shape = tuple(table.shape.numpy())
    if table.dtype != weight.dtype or tuple(weight.shape.numpy()) != (shape if axis_in == 1 else shape[::-1]):
        return None
    if isinstance(weight, Turned) and weight.source is table:
        return np.zeros(shape[0])
    some = np.linspace(0, shape[0] - 1, min(shape[0], 16)).astype(int)
    few, own = lines(table, 1, some), lines(weight, axis_in, some)
    centered = not np.array_equal(few, own)
    if centered and not np.array_equal(few, _centered(own)[0]):  # before all rows are looked at
        return None
    rows, others = read(table), read(weight)
    others = others if axis_in == 1 else others.T
    means = np.zeros(shape[0])
    for piece in (np.s_[start : start + PIECE] for start in range(0, shape[0], PIECE)):
        own = others[piece]
        if centered:
            own, means[piece] = _centered(own)
        if not np.array_equal(rows[piece], own):
            return None
    del rows, others
    release(table)
    return means


def _centered(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows without their means, as ``center-norms`` makes them, and the means."""
    wide = rows.astype(np.float64)
    means = wide.mean(-1, keepdims=True)
    return (wide - means).astype(rows.dtype), means[:, 0]


def _put_in_front(model: ir.Model, head: Site, scale: np.ndarray) -> ir.Value:
    """Multiply what a head reads by a scale, behind a boundary: the stream need not stay in the basis of the scale."""
    node, value = head.node, operand(head.node, 0)
    boundary = ensure_function(model, OP, BODY)
    apart = append_node(node, boundary, [value], name=f"{node.name}_apart", domain=DOMAIN, like=value).outputs[0]
    factors = add_initializer(model, f"{node.name}_scale", scale.astype(dtype_of(head.weight).numpy()))
    scaled = append_node(node, "Mul", [apart, factors], name=f"{node.name}_scaled", like=value).outputs[0]
    node.replace_input_with(0, scaled)
    return scaled


def _put_behind(model: ir.Model, head: Site, scaled: ir.Value, means: np.ndarray) -> None:
    """Add what the means of the rows of a table make of the head's input, for the table was centered."""
    node, made = head.node, head.node.outputs[0]
    axes = add_initializer(model, f"{node.name}_axes", np.array([-1]))
    factors = add_initializer(model, f"{node.name}_means", means.astype(dtype_of(head.weight).numpy()))
    total = append_node(node, "ReduceSum", [scaled, axes], name=f"{node.name}_total").outputs[0]
    total.type, total.shape = scaled.type, ir.Shape([*shape_of(scaled)[:-1], 1])
    rest = append_node(node, "Mul", [total, factors], name=f"{node.name}_rest", like=made, after=True)
    whole = append_node(rest, "Add", [made, rest.outputs[0]], name=f"{node.name}_whole", like=made, after=True)
    ir.convenience.replace_all_uses_with(made, whole.outputs[0], replace_graph_outputs=True)
    whole.replace_input_with(0, made)
