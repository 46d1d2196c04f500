"""Fused projections, cut before they are shaped into heads: queries, keys and values become axes of their own.

``[…, 3·h·d]`` reshaped to ``[…, 3, h, d]`` and then cut along the 3 makes one axis ``d`` that all three share, rotary
embedding and all. Cut first and reshaped each, the same elements have axes ``d`` of their own: V may change basis
whatever happens to Q and K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcompile.graph import add_initializer, append_node

__all__ = ["split_projection"]


@dataclass(frozen=True)
class _Cut:
    """One result that is cut out along the axis: elements ``start`` to ``end``; ``dropped`` if the axis is gone."""

    value: ir.Value
    start: int
    end: int
    dropped: bool = False


def split_projection(model: ir.Model, node: ir.Node) -> bool:
    """Rewrite a Reshape of the last axis whose outermost part is cut up right away; whether it was one."""
    if node.op_type != "Reshape" or node.domain or not node.inputs[0].shape or not node.outputs[0].shape:
        return False  # a scalar has no last axis
    place = _outermost(node)
    if place is None:
        return False
    moved, axis = node.outputs[0], place
    readers = [reader for reader, _ in moved.uses()]
    order = None
    if len(readers) == 1 and readers[0].op_type == "Transpose" and readers[0].outputs[0].shape is not None:
        order = list(readers[0].attributes.get_ints("perm", list(reversed(range(len(moved.shape))))))
        moved, axis = readers[0].outputs[0], order.index(place)
    cuts = _cuts(moved, axis)
    if not cuts or not _tile(cuts, node.outputs[0].shape[place]):
        return False
    _rewrite(model, node, place, order, axis, cuts)
    return True


def _outermost(node: ir.Node) -> int | None:
    """Where in the new shape the old last axis begins, if it does and nothing copies its size."""
    width, shape = node.inputs[0].shape[-1], node.outputs[0].shape
    place = len(shape)
    while place and isinstance(width, int) and isinstance(shape[place - 1], int) and math.prod(shape[place:]) < width:
        place -= 1
    if not isinstance(width, int) or math.prod(shape[place:]) != width or len(shape) - place < 2 or shape[place] < 2:
        return None
    target = node.inputs[1].const_value
    zeros = [] if target is None else np.flatnonzero(target.numpy() == 0)
    return None if any(zero >= len(node.inputs[0].shape) - 1 for zero in zeros) else place


def _cuts(value: ir.Value, axis: int) -> list[_Cut] | None:
    """What the readers of a value cut out of one axis; ``None`` if any of them does something else."""
    rank, size, found = len(value.shape), value.shape[axis], []
    if value.is_graph_output():
        return None
    for reader, index in value.uses():
        cut = _READERS.get(reader.op_type) if not reader.domain and index == 0 else None
        made = None if cut is None else cut(reader, axis, rank, size)
        if made is None:
            return None
        found += made
    return None if any(cut.value.is_graph_output() for cut in found) else found


def _constant(node: ir.Node, index: int) -> list[int] | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.const_value is None else value.const_value.numpy().reshape(-1).tolist()


def _slice(node: ir.Node, axis: int, rank: int, size: int) -> list[_Cut] | None:
    starts, ends, axes = (_constant(node, i) for i in (1, 2, 3))
    steps = _constant(node, 4) or [1]
    if None in (starts, ends, axes) or len(axes) != 1 or axes[0] % rank != axis or steps != [1]:
        return None
    start, end, _ = slice(starts[0], ends[0]).indices(size)
    return [_Cut(node.outputs[0], start, end)]


def _gather(node: ir.Node, axis: int, rank: int, size: int) -> list[_Cut] | None:
    index = _constant(node, 1)
    if (
        index is None
        or len(index) != 1
        or len(node.inputs[1].shape)
        or node.attributes.get_int("axis", 0) % rank != axis
    ):
        return None
    return [_Cut(node.outputs[0], index[0] % size, index[0] % size + 1, dropped=True)]


def _split(node: ir.Node, axis: int, rank: int, size: int) -> list[_Cut] | None:
    count = len(node.outputs)
    sizes = _constant(node, 1) or ([size // count] * count if size % count == 0 and len(node.inputs) < 2 else None)
    if sizes is None or node.attributes.get_int("axis", 0) % rank != axis:
        return None
    ends = np.cumsum(sizes).tolist()
    return [_Cut(v, end - n, end) for v, end, n in zip(node.outputs, ends, sizes, strict=True)]


_READERS = {"Slice": _slice, "Gather": _gather, "Split": _split}


def _tile(cuts: list[_Cut], size: int) -> bool:
    """Whether the cuts, in whatever order and some of them twice, make up the whole axis without overlap."""
    spans = sorted({(cut.start, cut.end) for cut in cuts})
    ends = [0, *(end for _, end in spans)]
    return (
        len(spans) > 1 and all(start == end for (start, _), end in zip(spans, ends, strict=False)) and ends[-1] == size
    )


def _rewrite(model: ir.Model, node: ir.Node, place: int, order: list[int] | None, axis: int, cuts: list[_Cut]) -> None:
    source, shape = node.inputs[0], list(node.outputs[0].shape)
    spans = sorted({(cut.start, cut.end) for cut in cuts})
    inner = math.prod(shape[place + 1 :])
    sizes = add_initializer(model, f"{node.name}_sizes", np.array([(end - start) * inner for start, end in spans]))
    split = append_node(node, "Split", [source, sizes], {"axis": -1}, name=f"{node.name}_parts", outputs=len(spans))
    for part, (start, end) in zip(split.outputs, spans, strict=True):
        part.name = f"{node.name}_part{start}"
        part.shape, part.type = ir.Shape([*source.shape[:-1], (end - start) * inner]), source.type
        made = _shaped(model, node, part, place, end - start)
        if order is not None:
            made = append_node(node, "Transpose", [made], {"perm": order}, name=f"{part.name}_moved").outputs[0]
            made.shape, made.type = (
                ir.Shape([[*shape[:place], end - start, *shape[place + 1 :]][i] for i in order]),
                part.type,
            )
        for cut in cuts:
            if (cut.start, cut.end) == (start, end):
                _replace(model, node, cut, made, axis)


def _shaped(model: ir.Model, node: ir.Node, part: ir.Value, place: int, length: int) -> ir.Value:
    """One part, reshaped as the whole was, but for the length of the axis that is cut."""
    target, rank = node.inputs[1], len(node.outputs[0].shape)
    size = add_initializer(model, f"{part.name}_length", np.array([length]))
    if target.const_value is not None:
        content = target.const_value.numpy().copy()
        content[place] = length
        new = add_initializer(model, f"{part.name}_shape", content)
    else:
        ends = [add_initializer(model, f"{part.name}_at{i}", np.array([i])) for i in (0, place, place + 1, rank)]
        head = append_node(node, "Slice", [target, ends[0], ends[1]], name=f"{part.name}_head").outputs[0]
        tail = append_node(node, "Slice", [target, ends[2], ends[3]], name=f"{part.name}_tail").outputs[0]
        new = append_node(node, "Concat", [head, size, tail], {"axis": 0}, name=f"{part.name}_shape").outputs[0]
        for value, count in ((head, place), (tail, rank - place - 1), (new, rank)):
            value.shape, value.type = ir.Shape([count]), target.type
    keep = {name: attribute.value for name, attribute in node.attributes.items()}
    made = append_node(node, "Reshape", [part, new], keep, name=f"{part.name}_shaped").outputs[0]
    shape = list(node.outputs[0].shape)
    shape[place] = length
    made.shape, made.type = ir.Shape(shape), part.type
    return made


def _replace(model: ir.Model, node: ir.Node, cut: _Cut, made: ir.Value, axis: int) -> None:
    if cut.dropped:
        axes = add_initializer(model, f"{cut.value.name}_axes", np.array([axis]))
        made = append_node(node, "Squeeze", [made, axes], name=f"{cut.value.name}_alone", like=cut.value).outputs[0]
    ir.convenience.replace_all_uses_with(cut.value, made)
