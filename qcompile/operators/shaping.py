"""Operators that move elements and change shapes. Sizes are numbers of the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.operators.call import Call
from qcompile.operators.symbols import Symbol, texts_of

__all__ = ["ROWS"]

_END = (1 << 31) - 1  # bounds from here on mean "to the end"


def _reshape(c: Call) -> str:
    target = c.host(1)
    if target is None:
        return f"{c.helper('reshape')}({c[0]}, {c.sizes(1)}, {bool(c.int('allowzero', 0))})"
    sizes = list(target.reshape(-1))
    if not c.int("allowzero", 0):
        sizes = [_kept(c, i) if not isinstance(size, Symbol) and size == 0 else size for i, size in enumerate(sizes)]
    if not sizes:
        return f"{c[0]}.reshape(())"
    return f"{c[0]}.reshape({', '.join(texts_of(_array(sizes)))})"


def _kept(c: Call, axis: int) -> int | Symbol:
    return c.dim(0, axis) or Symbol(f"{c[0]}.shape[{axis}]", natural=True)


def _array(items: Sequence[Any]) -> np.ndarray:
    return np.array([*items, None], object)[:-1]


def _flatten(c: Call) -> str:
    axis = c.int("axis", 1)
    if axis == 0:
        return f"{c[0]}.reshape(1, -1)"
    axis = c.axis(0, axis)
    if axis == c.rank(0):
        return f"{c[0]}.reshape(-1, 1)"
    return f"{c.helper('flatten')}({c[0]}, {axis})"


def _transpose(c: Call) -> str:
    order = c.ints("perm") or list(reversed(range(c.need_rank(0))))
    if order == list(range(len(order))):
        return c[0]
    moved = [i for i, axis in enumerate(order) if axis != i]
    if len(moved) == 2:
        return f"{c[0]}.transpose({moved[0]}, {moved[1]})"
    return f"{c[0]}.permute({', '.join(map(str, order))})"


def _unsqueeze(c: Call) -> str:
    axes = c.axes(1)
    if axes is None:
        raise c.refuse("its axes are missing")
    if any(axis < 0 for axis in axes) and any(axis >= 0 for axis in axes):
        rank = c.need_rank(0) + len(axes)
        axes = [axis % rank for axis in axes]
    order = sorted(axes, reverse=axes[0] < 0)  # outermost first from the end that they are counted from
    return c[0] + "".join(f".unsqueeze({axis})" for axis in order)


def _squeeze(c: Call) -> str:
    axes = c.axes(1)
    if axes is None:
        return f"{c[0]}.squeeze()"
    if len(axes) == 1:
        return f"{c[0]}.squeeze({axes[0]})"
    return f"{c[0]}.squeeze({tuple(axes)})"


def _concat(c: Call) -> str:
    present = [i for i in range(len(c)) if not c.is_empty(i)]
    if len(present) == 1:
        return c[present[0]]
    return f"torch.cat([{', '.join(c[i] for i in present)}], {c.int('axis', 0)})"


def _split(c: Call) -> str:
    axis, count = c.int("axis", 0), len(c.node.outputs)
    given = c.ints("split") or (c.numbers(1) if c.has(1) else None)
    if given is not None:
        sizes = given[0] if len(set(given)) == 1 else given
    elif c.has(1):
        sizes = c.sizes(1)
    else:
        size = c.dim(0, axis)
        sizes = -(-size // count) if size else f"-(-{c[0]}.shape[{axis}] // {count})"
    ending = "[0]" if count == 1 else ""
    return f"{c[0]}.split({sizes}, {axis}){ending}"


def _slice(c: Call) -> str:
    if "starts" in c.node.attributes:
        first = c.need_ints("starts")
        return _brackets(c, first, c.need_ints("ends"), c.ints("axes", range(len(first))), [1] * len(first))
    low, high = c.host(1), c.host(2)
    if low is None or high is None or any(c.has(i) and c.host(i) is None for i in (3, 4)):
        bounds = ", ".join(c.sizes(i) if c.has(i) else "None" for i in (1, 2, 3, 4))
        return f"{c.helper('slice_')}({c[0]}, {bounds})"
    starts, ends = list(low.reshape(-1)), list(high.reshape(-1))
    axes = c.numbers(3) if c.has(3) else list(range(len(starts)))
    steps = c.numbers(4) if c.has(4) else [1] * len(starts)
    if axes is None or steps is None:
        raise c.refuse("its axes or steps are not constant")
    if any(step < 0 for step in steps):
        bounds = ", ".join(f"[{', '.join(texts_of(_array(list(b))))}]" for b in (starts, ends, axes, steps))
        return f"{c.helper('slice_')}({c[0]}, {bounds})"
    return _brackets(c, starts, ends, axes, steps)


def _brackets(c: Call, starts: Sequence[Any], ends: Sequence[Any], axes: list[int], steps: list[int]) -> str:
    parts: dict[int, str] = {}
    for start, end, axis, step in zip(starts, ends, axes, steps):
        first = "" if start == 0 else texts_of(_array([start]))[0]
        known = not isinstance(end, Symbol)
        last = "" if known and end >= _END else texts_of(_array([end]))[0]
        parts[axis] = f"{first}:{last}" + (f":{step}" if step != 1 else "")
    if all(axis < 0 for axis in parts):
        cut = [parts.get(axis, ":") for axis in range(min(parts), 0)]
        return f"{c[0]}[..., {', '.join(cut)}]"
    parts = {c.axis(0, axis): part for axis, part in parts.items()}
    return f"{c[0]}[{', '.join(parts.get(axis, ':') for axis in range(max(parts) + 1))}]"


def _expand(c: Call) -> str:
    target, rank = c.host(1), c.rank(0)
    if target is None or rank is None or target.size < rank:
        return f"{c.helper('expand')}({c[0]}, {c.sizes(1)})"
    sizes = list(target.reshape(-1))
    offset = len(sizes) - rank
    for i in range(rank):  # a size of 1 broadcasts the other way, and a named size may be 1
        own, wanted = c.dim(0, i), sizes[offset + i]
        if own == 1:
            continue
        if own is not None or not isinstance(wanted, Symbol) and wanted == 1:
            sizes[offset + i] = -1
        elif not _same(c, i, wanted):
            return f"{c.helper('expand')}({c[0]}, [{', '.join(texts_of(_array(sizes)))}])"
        else:
            sizes[offset + i] = -1
    return f"{c[0]}.expand({', '.join(texts_of(_array(sizes)))})"


def _same(c: Call, axis: int, wanted: int | Symbol) -> bool:
    """Whether an axis is known to have the wanted size already."""
    own = c.program.size(c.value(0), axis)
    return isinstance(wanted, Symbol) and isinstance(own, Symbol) and wanted.text == own.text


def _tile(c: Call) -> str:
    return f"{c[0]}.repeat({c.sizes(1).strip('[]')})" if c.host(1) is not None else f"{c[0]}.repeat({c.sizes(1)})"


def _constant_of_shape(c: Call) -> str:
    fill = c.node.attributes["value"].as_tensor() if "value" in c.node.attributes else None
    item = 0.0 if fill is None else fill.numpy().item()
    kind = ir.DataType.FLOAT if fill is None else fill.dtype
    return f"torch.full({c.sizes(0)}, {item!r}, dtype={c.dtype(kind)}, device=device)".replace("inf", "float('inf')")


def _range(c: Call) -> str:
    kind = c.kind(0) or ir.DataType.INT64
    bounds = ", ".join(c.scalar(i) for i in range(3))
    return f"torch.arange({bounds}, dtype={c.program.dtype(kind, False)}, device=device)"


def _eye_like(c: Call) -> str:
    stated = c.int("dtype")
    kind = ir.DataType(stated) if stated else c.kind(0)
    if kind is None:
        raise c.refuse("the type of its result is not known")
    return f"{c.helper('eye')}({c[0]}.shape, {c.int('k', 0)}, {c.dtype(kind)}, device)"


def _trilu(c: Call) -> str:
    k = c.scalar(1) if c.has(1) else 0
    return f"torch.{'triu' if c.int('upper', 1) else 'tril'}({c[0]}, {k})"


def _pad(c: Call) -> str:
    mode = c.string("mode", "constant")
    if "pads" in c.node.attributes:
        pads, value, axes = str(c.ints("pads")), str(c.float("value", 0.0)), "None"
    else:
        pads, value = c.sizes(1), c.scalar(2) if c.has(2) else "0.0"
        axes = c.sizes(3) if c.has(3) else "None"
    return f'{c.helper("pad")}({c[0]}, {pads}, "{mode}", {value}, {axes})'


def _depth_to_space(c: Call) -> str:
    return f'{c.helper("depth_to_space")}({c[0]}, {c.int("blocksize")}, "{c.string("mode", "DCR")}")'


def _space_to_depth(c: Call) -> str:
    return f"{c.helper('space_to_depth')}({c[0]}, {c.int('blocksize')})"


def _one_hot(c: Call) -> str:
    return f"{c.helper('one_hot')}({c[0]}, {c.scalar(1)}, {c[2]}, {c.int('axis', -1)})"


ROWS = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "EyeLike": _eye_like,
    "Flatten": _flatten,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
