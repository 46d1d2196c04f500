"""Operators that move elements and those that ask for shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, tirx

from qcompile.backends.relax import known
from qcompile.backends.relax.builder import Builder, Value
from qcompile.backends.relax.folds import measure
from qcompile.backends.relax.operators.registry import operator, refuse

__all__ = ["axes_of", "join", "sizes_of"]


def sizes_of(node: ir.Node, value: Value | None, what: str) -> list[Any]:
    """Integers or sizes that must be known while compiling."""
    if not isinstance(value, np.ndarray):
        raise refuse(node, f"its {what} depend on data")
    return [known.simplify(v) for v in value.reshape(-1)]


def axes_of(g: Builder, node: ir.Node, value: Value | None, rank: int) -> list[int]:
    """Axes from an input or, in older operators, the attribute, counted from the front."""
    given = node.attributes.get_ints("axes", ()) if value is None else sizes_of(node, value, "axes")
    return [int(axis) % rank for axis in given]


@operator("Shape", "Size")
def _shape(g: Builder, node: ir.Node, x: relax.Expr) -> np.ndarray:
    return measure(node, g.shape(x))


@operator("Reshape")
def _reshape(g: Builder, node: ir.Node, x: Value, shape: Value) -> relax.Expr:
    x, wanted = g.tensor(x), sizes_of(node, shape, "sizes")
    have, keep = g.shape(x), not node.attributes.get_int("allowzero", 0)
    target = [have[i] if keep and isinstance(n, int) and n == 0 else n for i, n in enumerate(wanted)]
    free = [i for i, n in enumerate(target) if isinstance(n, int) and n == -1]
    if free:
        target[free[0]] = known.quotient(have, [n for i, n in enumerate(target) if i != free[0]])
    return g.reshape(x, target)


@operator("Flatten")
def _flatten(g: Builder, node: ir.Node, x: Value) -> relax.Expr:
    x = g.tensor(x)
    shape, axis = g.shape(x), node.attributes.get_int("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return g.reshape(x, [known.product(shape[:axis]), known.product(shape[axis:])])


@operator("Squeeze")
def _squeeze(g: Builder, node: ir.Node, x: Value, axes: Value | None = None) -> relax.Expr:
    x = g.tensor(x)
    shape = g.shape(x)
    drop = axes_of(g, node, axes, len(shape)) or [i for i, n in enumerate(shape) if n == 1]
    return g.reshape(x, [n for i, n in enumerate(shape) if i not in drop])


@operator("Unsqueeze")
def _unsqueeze(g: Builder, node: ir.Node, x: Value, axes: Value | None = None) -> relax.Expr:
    x = g.tensor(x)
    count = len(node.attributes.get_ints("axes", ())) if axes is None else len(sizes_of(node, axes, "axes"))
    shape = g.shape(x)
    new = set(axes_of(g, node, axes, len(shape) + count))
    rest = iter(shape)
    return g.reshape(x, [1 if i in new else next(rest) for i in range(len(shape) + count)])


@operator("Transpose")
def _transpose(g: Builder, node: ir.Node, x: Value) -> relax.Expr:
    x = g.tensor(x)
    return g.transpose(x, node.attributes.get_ints("perm", tuple(reversed(range(len(g.shape(x)))))))


@operator("Concat")
def _concat(g: Builder, node: ir.Node, *inputs: Value) -> relax.Expr:
    from qcompile.backends.relax.operators.elementwise import like

    first = next((x for x in inputs if not isinstance(x, np.ndarray)), inputs[0])
    parts = [like(g, x, first) for x in inputs]
    return join(g, parts, node.attributes.get_int("axis") % len(g.shape(parts[0])))


def join(g: Builder, parts: list[relax.Expr], axis: int) -> relax.Expr:
    """One behind the other along an axis."""
    shapes = [g.shape(part) for part in parts]
    starts = [0]
    for shape in shapes:
        starts.append(known.simplify(starts[-1] + shape[axis]))

    def element(*arguments: Any) -> tirx.Expr:
        tensors, index = arguments[: len(parts)], arguments[len(parts) :]
        value = None
        for tensor, start, end in reversed(list(zip(tensors, starts, starts[1:], strict=False))):
            part = tensor(*index[:axis], index[axis] - start, *index[axis + 1 :])
            value = part if value is None else tirx.if_then_else(index[axis] < end, part, value)
        return value

    return g.compute([*shapes[0][:axis], starts[-1], *shapes[0][axis + 1 :]], element, "concat", *parts)


@operator("Split")
def _split(g: Builder, node: ir.Node, x: Value, sizes: Value | None = None) -> list[relax.Expr]:
    x = g.tensor(x)
    shape = g.shape(x)
    axis = node.attributes.get_int("axis", 0) % len(shape)
    parts = list(node.attributes.get_ints("split", ())) if sizes is None else sizes_of(node, sizes, "sizes")
    if not parts:
        count = node.attributes.get_int("num_outputs", len(node.outputs))
        piece = known.simplify(tirx.floordiv(shape[axis] + count - 1, count)) if count > 1 else shape[axis]
        parts = [piece] * (count - 1) + [known.simplify(shape[axis] - piece * (count - 1))]
    results, start = [], 0
    for size in parts:
        results.append(_window(g, x, {axis: (start, 1, size)}))
        start = start + size
    return results


def _window(g: Builder, x: relax.Expr, cuts: dict[int, tuple[Any, int, Any]]) -> relax.Expr:
    """By axis, (first element, step, count)."""
    shape = [cuts[i][2] if i in cuts else n for i, n in enumerate(g.shape(x))]

    def element(t: Any, *index: Any) -> tirx.Expr:
        return t[tuple(cuts[a][0] + i * cuts[a][1] if a in cuts else i for a, i in enumerate(index))]

    return g.compute(shape, element, "slice", x)


@operator("Slice")
def _slice(
    g: Builder, node: ir.Node, x: Value, starts: Value | None = None, ends: Value | None = None,
    axes: Value | None = None, steps: Value | None = None,
) -> relax.Expr:  # fmt: skip
    x = g.tensor(x)
    shape = g.shape(x)
    if starts is None:  # attributes, before opset 10
        starts, ends = (np.array(node.attributes.get_ints(name)) for name in ("starts", "ends"))
        axes = np.array(node.attributes.get_ints("axes", tuple(range(len(starts)))))
    first, last = sizes_of(node, starts, "starts"), sizes_of(node, ends, "ends")
    which = [int(a) % len(shape) for a in (sizes_of(node, axes, "axes") if axes is not None else range(len(first)))]
    by = [1] * len(first) if steps is None else sizes_of(node, steps, "steps")
    cuts = {
        a: _bounds(node, start, end, step, shape[a]) for a, start, end, step in zip(which, first, last, by, strict=True)
    }
    whole = all(
        c[0] == 0 and c[1] == 1 and known.same(c[2], shape[a]) for a, c in cuts.items() if isinstance(c[0], int)
    )
    return x if whole and all(isinstance(c[0], int) for c in cuts.values()) else _window(g, x, cuts)


def _bounds(node: ir.Node, start: Any, end: Any, step: Any, size: Any) -> tuple[Any, int, Any]:
    """(first, step, count) of a slice of an axis."""
    if not isinstance(step, int):
        raise refuse(node, "its steps depend on sizes")
    low, high = (0, size) if step > 0 else (-1, size - 1)
    start, end = (_clamped(v, size, low, high) for v in (start, end))
    span = end - start if step > 0 else start - end
    count = known.simplify(span if abs(step) == 1 else (span + abs(step) - 1) // abs(step))
    if isinstance(count, int):
        count = max(count, 0)
    return known.simplify(start), step, count


def _clamped(value: Any, size: Any, low: Any, high: Any) -> Any:
    if isinstance(value, int) and value < 0:
        value = low if isinstance(size, int) and value + size < low or value < -(1 << 31) else value + size
    if isinstance(value, int) and isinstance(high, int):
        return max(low, min(value, high))
    if isinstance(value, int) and value >= (1 << 31) - 1:
        return high
    if isinstance(value, int) and value == 0:
        return value
    if known.same(value, high) or known.holds(tirx.LE(known.expression(value), known.expression(high))):
        return value
    return known.simplify(tirx.min(known.expression(value), known.expression(high)))


@operator("Expand")
def _expand(g: Builder, node: ir.Node, x: Value, shape: Value) -> relax.Expr:
    x, wanted = g.tensor(x), sizes_of(node, shape, "sizes")
    have = g.shape(x)
    rank = max(len(have), len(wanted))
    own, asked = [1] * (rank - len(have)) + have, [1] * (rank - len(wanted)) + wanted
    target = [n if isinstance(w, int) and w == 1 else w if isinstance(n, int) and n == 1 else n
              for n, w in zip(own, asked, strict=True)]  # fmt: skip
    if len(have) == rank and all(map(known.same, target, have)):
        return x

    def element(t: Any, *index: Any) -> tirx.Expr:
        inner = index[rank - len(have) :]
        wide = target[rank - len(have) :]
        return t[tuple(
            tirx.const(0, "int64") if isinstance(n, int) and n == 1 and not (isinstance(w, int) and w == 1) else i
            for i, n, w in zip(inner, have, wide, strict=True)
        )]  # fmt: skip

    return g.compute(target, element, "expand", x)


@operator("Tile")
def _tile(g: Builder, node: ir.Node, x: Value, repeats: Value) -> relax.Expr:
    x, times = g.tensor(x), sizes_of(node, repeats, "repeats")
    have = g.shape(x)
    target = [known.simplify(n * t) for n, t in zip(have, times, strict=True)]
    return g.compute(
        target, lambda t, *index: t[tuple(tirx.floormod(i, n) for i, n in zip(index, have, strict=True))], "tile", x
    )


@operator("Pad")
def _pad(
    g: Builder,
    node: ir.Node,
    x: Value,
    pads: Value | None = None,
    value: Value | None = None,
    axes: Value | None = None,
) -> relax.Expr:
    x = g.tensor(x)
    have, mode = g.shape(x), node.attributes.get_string("mode", "constant")
    amounts = list(node.attributes.get_ints("pads", ())) if pads is None else sizes_of(node, pads, "pads")
    which = range(len(have)) if axes is None else axes_of(g, node, axes, len(have))
    before, after = [0] * len(have), [0] * len(have)
    for i, axis in enumerate(which):
        before[axis], after[axis] = amounts[i], amounts[i + len(which)]
    if mode not in ("constant", "reflect", "edge"):
        raise refuse(node, f"mode '{mode}' is not supported")
    fill = tirx.const(0, g.dtype(x))
    if isinstance(value, np.ndarray) and value.size:
        fill = tirx.const(value.reshape(-1)[0].item(), g.dtype(x))
    target = [known.simplify(b + n + a) for b, n, a in zip(before, have, after, strict=True)]

    def element(t: Any, *index: Any) -> tirx.Expr:
        own = [i - b for i, b in zip(index, before, strict=True)]
        if mode != "constant":
            return t[tuple(_mirrored(i, n, mode) for i, n in zip(own, have, strict=True))]
        inside = [c for i, n, b, a in zip(own, have, before, after, strict=True)
                  for c in ([] if _none(b) else [i >= 0]) + ([] if _none(a) else [i < n])]  # fmt: skip
        return tirx.if_then_else(tirx.all(*inside), t[tuple(own)], fill) if inside else t[tuple(own)]

    return g.compute(target, element, "pad", x)


def _none(amount: Any) -> bool:
    return isinstance(amount, int) and amount == 0


def _mirrored(i: Any, size: Any, mode: str) -> Any:
    last = size - 1
    if mode == "edge":
        return tirx.max(tirx.min(i, known.expression(last)), tirx.const(0, "int64"))
    i = tirx.Select(i < 0, -i, i)
    return tirx.Select(i > last, 2 * last - i, i)
