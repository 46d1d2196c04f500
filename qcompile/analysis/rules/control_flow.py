"""Control flow: a body is analyzed like the graph around it, and its inputs and outputs are joined with the node's."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qcompile.analysis.axes import Ref, complete
from qcompile.analysis.spaces import Analysis, rule, run
from qcompile.ir.graph import bodies, label, static
from qcompile.ir.required import shape_of
from qcompile.transforms.freedom import Freedom

__all__ = ["if_", "loop", "scan"]


@rule("If")
def if_(analysis: Analysis, node: ir.Node) -> None:
    """Both branches make the same value in the same basis."""
    analysis.freeze(node.inputs, f"{label(node)} decides by it")
    branches = bodies(node)
    for branch in branches:
        run(analysis, branch)
    for output, *made in zip(node.outputs, *(branch.outputs for branch in branches), strict=True):
        sides = complete([analysis.refs_or_none(value) for value in made])
        if sides is None or len({len(refs) for refs in sides}) > 1:
            analysis.freeze(made, f"{label(node)} has branches whose results differ in rank")
            analysis.set(output, None if output.shape is None else _frozen(analysis, node, output))
        else:
            analysis.set(output, [_either(analysis, node, *refs) for refs in zip(*sides, strict=True)])


def _frozen(analysis: Analysis, node: ir.Node, value: ir.Value) -> list[Ref]:
    return [analysis.axes.frozen(static(dim), label(node)) for dim in shape_of(value)]


def _either(analysis: Analysis, node: ir.Node, left: Ref, right: Ref) -> Ref:
    axes = analysis.axes
    if axes.same(left, right):
        return left
    if axes.size(left) == axes.size(right) is not None:
        axes.unify(left, right, f"{label(node)} chooses between them")
        return left
    for ref in (left, right):
        axes.constrain(ref, Freedom.NONE, f"{label(node)} chooses between axes of different sizes")
    return axes.frozen(None, f"{label(node)} chooses between axes of different sizes")


@rule("Scan")
def scan(analysis: Analysis, node: ir.Node) -> None:
    """States keep their basis from step to step; the axis that is scanned keeps its order."""
    (body,) = bodies(node)
    scanned = node.attributes.get_int("num_scan_inputs")
    states = len(node.inputs) - scanned
    if len(body.inputs) != len(node.inputs) or len(body.outputs) != len(node.outputs):
        analysis.opaque(node, f"{label(node)} has the form of opset 8")
        return
    for outer, inner in zip(node.inputs[:states], body.inputs, strict=False):
        analysis.set(inner, analysis.refs_or_none(outer))
    steps = [
        _step(analysis, node, *item)
        for item in zip(node.inputs[states:], body.inputs[states:], _places(node, "input", scanned), strict=True)
    ]
    run(analysis, body)
    carried = _carried(analysis, node, node.inputs[:states], body.outputs[:states], node.outputs[:states])
    if carried is None:
        analysis.opaque(node, f"{label(node)} has states that cannot be followed")
        return
    places = _places(node, "output", len(node.outputs) - states)
    for outer, inner, place in zip(node.outputs[states:], body.outputs[states:], places, strict=True):
        _stack(analysis, outer, inner, place, steps[0])


def _places(node: ir.Node, side: str, count: int) -> list[int]:
    return list(node.attributes.get_ints(f"scan_{side}_axes", [0] * count))


def _step(analysis: Analysis, node: ir.Node, outer: ir.Value | None, inner: ir.Value, place: int) -> Ref:
    refs = list(analysis.refs(outer))
    axis = refs.pop(place % len(refs))
    analysis.axes.constrain(axis, Freedom.NONE, f"{label(node)} steps through it")
    analysis.set(inner, refs)
    return axis


def _stack(analysis: Analysis, outer: ir.Value, inner: ir.Value, place: int, axis: Ref) -> None:
    refs = analysis.refs_or_none(inner)
    if refs is not None:
        place %= len(refs) + 1
        refs = [*refs[:place], axis, *refs[place:]]
    analysis.set(outer, refs)


def _carried(
    analysis: Analysis,
    node: ir.Node,
    first: Sequence[ir.Value | None],
    made: Sequence[ir.Value],
    last: Sequence[ir.Value],
) -> bool | None:
    """Join each state with what a step makes of it.

    Returns:
        Whether every state is known to keep its shape, ``None`` if its rank changes or is unknown.
    """
    axes, fixed = analysis.axes, True
    for before, after, output in zip(first, made, last, strict=True):
        old, new = analysis.refs_or_none(before), analysis.refs_or_none(after)
        if old is None or new is None or len(old) != len(new):
            return None
        for a, b in zip(old, new, strict=True):
            fixed &= axes.same(a, b) or axes.size(a) == axes.size(b) is not None
            axes.unify(a, b, f"{label(node)} carries it from step to step")
        analysis.set(output, old)
    return bool(fixed)


@rule("Loop")
def loop(analysis: Analysis, node: ir.Node) -> None:
    """States keep their basis from step to step, and must keep their shape to be followed."""
    (body,) = bodies(node)
    initial, made = list(node.inputs[2:]), list(body.outputs[1:])
    analysis.freeze(node.inputs[:2], f"{label(node)} counts by it")
    analysis.set(body.inputs[0], [])
    analysis.set(body.inputs[1], [])
    for outer, inner in zip(initial, body.inputs[2:], strict=True):
        analysis.set(inner, analysis.refs_or_none(outer))
    run(analysis, body)
    analysis.freeze(body.outputs[:1], f"{label(node)} decides by it")
    count = len(initial)
    if not _carried(analysis, node, initial, made[:count], node.outputs[:count]):
        analysis.opaque(node, f"{label(node)} has states whose shape cannot be followed")
        return
    for outer, inner in zip(node.outputs[count:], made[count:], strict=True):
        _stack(analysis, outer, inner, 0, analysis.axes.frozen(None, f"{label(node)} steps along it"))
