"""Values within the bodies of If, Loop and Scan as outputs of the graph, so that calibration sees them.

A value leaves a body as rows ``[-1, features]``: from a Loop or Scan as one more scan output, from a branch as one more
output, to which the other branch adds no rows. Values whose number of rows changes from step to step cannot be stacked,
and are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.ir.graph import add_initializer, append_node, bodies
from qcompile.ir.required import dtype_of, graph_of, name_of, rank_of, shape_of

__all__ = ["expose", "visible"]


def expose(model: ir.Model, inner: Mapping[str, int]) -> tuple[ir.Model, dict[str, str]]:
    """A copy of a graph with more outputs.

    Args:
        model: the graph, names of values distinct over all bodies.
        inner: values within bodies, with the axis of their features.

    Returns:
        the copy, and for each value that can be seen the name of the output that holds its rows, features last.
    """
    model = model.clone()
    owners = _owners(model)
    found = {}
    for name, (value, body) in visible(model, inner).items():
        found[name] = name_of(_lifted(model, _as_rows(model, body, value, inner[name]), body, owners))
    return model, found


def visible(model: ir.Model, names: Collection[str]) -> dict[str, tuple[ir.Value, ir.Graph]]:
    """The values of those names that can be seen from outside the bodies in which they stand, with the bodies."""
    owners = _owners(model)
    found: dict[str, tuple[ir.Value, ir.Graph]] = {}
    counted = {str(dim.value) for value in model.graph.inputs for dim in value.shape or () if not isinstance(dim, int)}
    for body in owners:
        made = [*body.inputs, *(value for node in body for value in node.outputs)]
        wanted = (value for value in made if value.name in names)
        found |= {name_of(value): (value, body) for value in wanted if _steady(value, body, owners, counted)}
    return found


def _owners(model: ir.Model) -> dict[ir.Graph, ir.Node]:
    return {body: node for node in model.graph.all_nodes() for body in bodies(node)}


def _steady(value: ir.Value, body: ir.Graph, owners: Mapping[ir.Graph, ir.Node], counted: set[str]) -> bool:
    """Whether every step of every loop around a value makes as many rows of it."""
    kinds = []
    while body in owners:
        kinds.append(owners[body].op_type)
        body = graph_of(owners[body])
    loops = [i for i, kind in enumerate(kinds) if kind != "If"]
    if not loops:
        return value.shape is not None
    sized = value.shape is not None and all(isinstance(dim, int) or str(dim.value) in counted for dim in value.shape)
    return sized and "If" not in kinds[: loops[-1]]


def _as_rows(model: ir.Model, body: ir.Graph, value: ir.Value, axis: int) -> ir.Value:
    """``[-1, features]``, at the end of the body."""
    rank, size = rank_of(value), shape_of(value)[axis]
    order = [i for i in range(rank) if i != axis % rank] + [axis % rank]
    if order != sorted(order):
        value = _append(body, "Transpose", [value], {"perm": order})
    target = add_initializer(model, "qcompile.rows", np.array([-1, size], np.int64))
    rows = _append(body, "Reshape", [value, target], {})
    rows.shape = ir.Shape([None, size])
    return rows


def _append(body: ir.Graph, op: str, inputs: list[ir.Value], attributes: Mapping[str, Any]) -> ir.Value:
    name = f"{inputs[0].name}/{op.lower()}_tapped"
    made = append_node(body[-1], op, inputs, attributes, name=name, after=True).outputs[0]
    made.type = inputs[0].type
    return made


def _lifted(model: ir.Model, value: ir.Value, body: ir.Graph, owners: Mapping[ir.Graph, ir.Node]) -> ir.Value:
    """The value as an output of the graph, through every operator that it stands in."""
    while body in owners:
        node = owners[body]
        for branch in bodies(node):
            branch.outputs.append(value if branch is body else _nothing(model, branch, value))
        node.resize_outputs(len(node.outputs) + 1)
        outer = node.outputs[-1]
        outer.name, outer.type = f"{value.name}_out", value.type
        outer.shape = value.shape if node.op_type == "If" else ir.Shape([None, *shape_of(value)])
        if node.op_type == "Scan":
            _extend_axes(node)
        value, body = outer, graph_of(node)
    model.graph.outputs.append(value)
    return value


def _nothing(model: ir.Model, branch: ir.Graph, value: ir.Value) -> ir.Value:
    """No rows, from a branch that does not compute the value."""
    shape = [dim if isinstance(dim, int) else 0 for dim in shape_of(value)]
    empty = add_initializer(model, f"{value.name}/nothing", np.zeros(shape, dtype_of(value).numpy()))
    made = ir.Node("", "Identity", [empty], name=f"{value.name}/none")
    made.outputs[0].name, made.outputs[0].type, made.outputs[0].shape = made.name, value.type, ir.Shape(shape)
    branch.append(made)
    return made.outputs[0]


def _extend_axes(scan: ir.Node) -> None:
    """Extend the attributes that a Scan has for each of its scan outputs by the new one."""
    for name in ("scan_output_axes", "scan_output_directions"):
        if name in scan.attributes:
            scan.attributes[name] = ir.AttrInt64s(name, [*scan.attributes.get_ints(name), 0])
