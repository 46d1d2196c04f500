"""Split projections: they are cut before they are shaped into heads: queries, keys and values become axes of their own.

``[…, 3·h·d]`` reshaped to ``[…, 3, h, d]`` and then cut along the 3 makes one axis ``d`` that all three share, rotary
embedding and all. Cut first and reshaped each, the same elements have axes ``d`` of their own: V may change basis
whatever happens to Q and K. The same holds where the heads come first, ``[…, h, 3, d]``: the cut is then made through
``[…, h, 3·d]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.ir.graph import add_initializer, append_node
from qcompile.ir.required import operand, rank_of, shape_of
from qcompile.passes.state import State

__all__ = ["SplitProjections"]


@dataclass(frozen=True)
class _Cut:
    """One result that is cut out along an axis.

    Args:
        value: the result.
        start, end: the elements that it has.
        dropped: whether the axis is gone from it.
        axis: the axis, as it was counted when it was cut.
        order: the permutation of all axes that came before the cut, if any.
    """

    value: ir.Value
    start: int
    end: int
    axis: int
    dropped: bool = False
    order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class SplitProjections:
    """Cut fused projections before they are shaped into heads."""

    name: ClassVar[str] = "split-projections"

    def apply(self, state: State) -> bool:
        """Rewrite shapes and cuts of the main graph."""
        changed = [node.graph is not None and _split_projection(state.model, node) for node in list(state.model.graph)]
        if any(changed):
            state.edited()
        return any(changed)


def _split_projection(model: ir.Model, node: ir.Node) -> bool:
    """Rewrite a Reshape of the last axis one of whose parts is cut up right away; whether it was one."""
    if node.op_type != "Reshape" or node.domain or not operand(node, 0).shape or not node.outputs[0].shape:
        return False  # a scalar has no last axis
    for place, size in _places(node):
        cuts = _cuts(node.outputs[0], place, size, None)
        spans = _tile(cuts, size) if cuts else None
        if cuts and spans is not None:
            _rewrite(model, node, place, cuts, spans)
            return True
    return False


def _places(node: ir.Node) -> list[tuple[int, int]]:
    """Where in the new shape the old last axis may be cut: at its parts of more than one element but the innermost.

    Each comes with its size.
    """
    width, shape = shape_of(operand(node, 0))[-1], shape_of(node.outputs[0])
    if not isinstance(width, int):
        return []
    parts: list[int] = []
    for dim in reversed(shape.dims):
        if not isinstance(dim, int) or math.prod(parts) >= width:
            break
        parts.insert(0, dim)
    if math.prod(parts) != width:
        return []
    return [(place, size) for place, size in enumerate(parts[:-1], len(shape) - len(parts)) if size > 1]


# -- what is cut ---------------------------------------------------------------------------------------------------


def _cuts(value: ir.Value, axis: int, size: int, order: tuple[int, ...] | None) -> list[_Cut] | None:
    """What the readers of a value cut out of one axis; ``None`` if any of them does something else."""
    found: list[_Cut] = []
    if value.is_graph_output():
        return None
    for reader, index in value.uses():
        made = None
        if reader.op_type == "Transpose" and not reader.domain and order is None and value.shape is not None:
            moved = tuple(reader.attributes.get_ints("perm", list(reversed(range(len(value.shape))))))
            made = _cuts(reader.outputs[0], moved.index(axis), size, moved)
        elif reader.op_type in _READERS and not reader.domain and index == 0 and value.shape is not None:
            made = _READERS[reader.op_type](reader, axis, len(value.shape), size)
            made = made and [replace(cut, order=order) for cut in made]
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
    if starts is None or ends is None or axes is None or steps != [1]:
        return None
    if len(axes) != 1 or axes[0] % rank != axis:
        return None
    start, end, _ = slice(starts[0], ends[0]).indices(size)
    return [_Cut(node.outputs[0], start, end, axis)] if start < end else None


def _gather(node: ir.Node, axis: int, rank: int, size: int) -> list[_Cut] | None:
    index = _constant(node, 1)
    if index is None or len(index) != 1 or node.attributes.get_int("axis", 0) % rank != axis:
        return None
    dims = rank_of(operand(node, 1))
    return [_Cut(node.outputs[0], index[0] % size, index[0] % size + 1, axis, not dims)] if dims < 2 else None


def _gather_nd(node: ir.Node, axis: int, _rank: int, size: int) -> list[_Cut] | None:
    index = _constant(node, 1)
    if index is None or list(shape_of(operand(node, 1))) != [1, 1] or axis:
        return None
    if node.attributes.get_int("batch_dims", 0):
        return None
    return [_Cut(node.outputs[0], index[0] % size, index[0] % size + 1, axis)]


def _split(node: ir.Node, axis: int, rank: int, size: int) -> list[_Cut] | None:
    count = len(node.outputs)
    sizes = _constant(node, 1) or ([size // count] * count if size % count == 0 and len(node.inputs) < 2 else None)
    if sizes is None or node.attributes.get_int("axis", 0) % rank != axis:
        return None
    ends = np.cumsum(sizes).tolist()
    return [_Cut(v, end - n, end, axis) for v, end, n in zip(node.outputs, ends, sizes, strict=True)]


_READERS: dict[str, Callable[[ir.Node, int, int, int], list[_Cut] | None]] = {
    "Slice": _slice, "Gather": _gather, "GatherND": _gather_nd, "Split": _split,
}  # fmt: skip


def _tile(cuts: Sequence[_Cut], size: int) -> list[tuple[int, int]] | None:
    """The runs that make up the whole axis: the cuts, in whatever order and some of them twice, and what they leave.

    ``None`` if some overlap, or if there is one run alone.
    """
    found: list[tuple[int, int]] = []
    end = 0
    for span in sorted({(cut.start, cut.end) for cut in cuts}):
        if span[0] < end:
            return None
        found += [(end, span[0]), span]
        end = span[1]
    found = [span for span in [*found, (end, size)] if span[0] < span[1]]
    return found if len(found) > 1 else None


# -- cut first -----------------------------------------------------------------------------------------------------


def _rewrite(model: ir.Model, node: ir.Node, place: int, cuts: Sequence[_Cut], spans: list[tuple[int, int]]) -> None:
    sizes = ir.Shape(shape_of(node.outputs[0])[place:]).numpy()  # static: they multiply to the old axis
    width, inner = math.prod(sizes), math.prod(sizes[1:])
    source = operand(node, 0)
    if shape_of(source)[-1] != width:  # heads come first
        source = _shaped(model, node, source, place, [width], f"{node.name}_merged")
    lengths = add_initializer(model, f"{node.name}_sizes", np.array([(end - start) * inner for start, end in spans]))
    split = append_node(node, "Split", [source, lengths], {"axis": -1}, name=f"{node.name}_parts", outputs=len(spans))
    for part, (start, end) in zip(split.outputs, spans, strict=True):
        part.name = f"{node.name}_part{start}"
        part.shape, part.type = ir.Shape([*shape_of(source)[:-1], (end - start) * inner]), source.type
        own = [cut for cut in cuts if (cut.start, cut.end) == (start, end)]
        if own:
            made = _shaped(model, node, part, place, [end - start, *sizes[1:]], f"{part.name}_shaped")
            for cut in own:
                _replace(model, node, cut, made)


def _shaped(model: ir.Model, node: ir.Node, source: ir.Value, place: int, tail: list[int], name: str) -> ir.Value:
    """A value, reshaped as the whole was up to ``place``, and to ``tail`` from there."""
    target = operand(node, 1)
    if target.const_value is not None:
        new = add_initializer(model, f"{name}_shape", np.array([*target.const_value.numpy()[:place], *tail]))
    else:
        ends = [add_initializer(model, f"{name}_at{i}", np.array([i])) for i in (0, place)]
        head = append_node(node, "Slice", [target, *ends], name=f"{name}_head").outputs[0]
        rest = add_initializer(model, f"{name}_tail", np.array(tail))
        new = append_node(node, "Concat", [head, rest], {"axis": 0}, name=f"{name}_shape").outputs[0]
        for value, count in ((head, place), (new, place + len(tail))):
            value.shape, value.type = ir.Shape([count]), target.type
    keep = {name: attribute.value for name, attribute in node.attributes.items()}
    made = append_node(node, "Reshape", [source, new], keep, name=name).outputs[0]
    made.shape, made.type = ir.Shape([*shape_of(node.outputs[0])[:place], *tail]), source.type
    return made


def _replace(model: ir.Model, node: ir.Node, cut: _Cut, made: ir.Value) -> None:
    if cut.order is not None:
        shape = ir.Shape([shape_of(made)[i] for i in cut.order])
        name = f"{cut.value.name}_moved"
        made = append_node(node, "Transpose", [made], {"perm": cut.order}, name=name, like=made).outputs[0]
        made.shape = shape
    if cut.dropped:
        axes = add_initializer(model, f"{cut.value.name}_axes", np.array([cut.axis]))
        made = append_node(node, "Squeeze", [made, axes], name=f"{cut.value.name}_alone", like=cut.value).outputs[0]
    ir.convenience.replace_all_uses_with(cut.value, made)
