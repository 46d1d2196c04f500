"""Leaves out of a file what it says twice, or what readers find again: in small networks that is a tenth of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import count
from typing import TypeAlias

import onnx_ir as ir

__all__ = ["compact", "say_once"]

#: A size of a shape: a number, or a name, which may be none.
Size: TypeAlias = int | ir.SymbolicDim

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def say_once(model: ir.Model) -> None:
    """Let constants have no shapes and types but those of their contents, so that files hold these once."""
    for graph in model.graphs():
        shown = {*graph.inputs, *graph.outputs}
        for value in graph.initializers.values():
            if value not in shown:
                value.shape = value.type = None


def compact(model: ir.Model, kept: Collection[str | None] = ()) -> None:
    """Shorten a graph that is about to be saved.

    Shapes and types of values are left out where inference finds the same, and sizes that nobody knows are named where
    they first appear. Operators that were put in are called as
    what they write: they lose their names, and what they write gets a short one. Names of the source stay, by which
    manifests know sites, and readers what they look at.

    Args:
        kept: names of values that stay, with those of the operators that write them.
    """
    graphs = list(model.graphs())
    _drop_inferred(model)
    names = _short({*kept, *(value.name for graph in graphs for value in _named(graph))})
    for node in (node for graph in graphs for node in graph if node.outputs):
        if node.name == node.outputs[0].name and node.name not in kept:
            node.name = None
        for value in node.outputs:
            if value.name and value.name not in kept and not value.is_graph_output():
                value.name = next(names)


def _named(graph: ir.Graph) -> Iterator[ir.Value]:
    """Values whose names stay."""
    yield from (*graph.inputs, *graph.outputs, *graph.initializers.values())


def _short(taken: set[str | None]) -> Iterator[str]:
    for number in count():
        digits, rest = "", number
        while not digits or rest:
            rest, digit = divmod(rest, len(_DIGITS))
            digits = _DIGITS[digit] + digits
        name = f"_{digits}"  # no number alone: parts of networks are called so
        if name not in taken:
            yield name


def _drop_inferred(model: ir.Model) -> None:
    """Forget shapes and types between the operators of the main graph that follow from those of its inputs.

    A size that nobody knows gets a name where it first appears: onnxruntime loads values that have sizes without names
    in a time that grows with the square of their number, a minute for a decoder of 30 layers.
    """
    from onnx import shape_inference

    own = [value for node in model.graph for value in node.outputs if value.name and not value.is_graph_output()]
    known = {value.name: (value.type, value.shape) for value in own}
    for value in own:
        value.shape = value.type = None
    # Without propagation of data: it finds sizes behind reshapes that onnxruntime does not find again.
    found = ir.from_proto(shape_inference.infer_shapes(ir.to_proto(model))).graph
    inferred = {value.name: (value.type, value.shape) for node in found for value in node.outputs}
    said: dict[Size, Size] = {size: size for value in model.graph.inputs for size in value.shape or ()}
    for value in own:
        kind, shape = inferred.get(value.name, (None, None))
        follows = None if shape is None else [said.get(size, size) for size in shape]
        own_kind, sizes = known[value.name][0] or kind, _filled(known[value.name][1], follows)
        new = {size for size in shape or () if isinstance(size, ir.SymbolicDim)} - said.keys()
        if new or own_kind != kind or sizes != follows:
            value.type, value.shape = own_kind, None if sizes is None else ir.Shape(sizes)
            said |= dict(zip(shape or (), sizes or (), strict=False))


def _filled(shape: ir.Shape | None, found: list[Size] | None) -> list[Size] | None:
    """A shape with the names that are found for what has none in it."""
    if shape is None or found is None or len(shape) != len(found):
        return found if shape is None else list(shape)
    both = zip(shape, found, strict=True)
    return [other if isinstance(size, ir.SymbolicDim) and size.value is None else size for size, other in both]
