"""Resize: one axis after the other, each output a few weighted elements of the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, tirx

from qcompile.backends.relax import known
from qcompile.backends.relax.builder import Builder, Value
from qcompile.backends.relax.operators.registry import operator, refuse
from qcompile.backends.relax.operators.shaping import axes_of, sizes_of

__all__: list[str] = []

_HALF, _ONE = (tirx.const(value, "float32") for value in (0.5, 1.0))


@operator("Resize")
def _resize(
    g: Builder, node: ir.Node, x: Value, _region: Value | None = None, scales: Value | None = None,
    sizes: Value | None = None,
) -> relax.Expr:  # fmt: skip
    x, get = g.tensor(x), node.attributes
    where = get.get_string("coordinate_transformation_mode", "half_pixel")
    kind = get.get_string("mode", "nearest")
    stretched = get.get_string("keep_aspect_ratio_policy", "stretch") == "stretch"
    blurred = any(get.get_int(name, 0) for name in ("antialias", "exclude_outside"))
    if where not in _PLACES or blurred or not stretched:
        raise refuse(node, f"coordinates '{where}', antialiasing or a kept aspect ratio are not supported")
    have = g.shape(x)
    given = get.get_ints("axes", tuple(range(len(have))))
    axes = axes_of(g, node, np.array(given), len(have))
    whole = sizes is not None and (not isinstance(sizes, np.ndarray) or sizes.size > 0)
    factors: list[float | None] = [None] * len(axes)
    if whole:
        targets = sizes_of(node, sizes, "sizes")
    else:
        stated = [float(factor) for factor in sizes_of(node, scales, "scales")]
        targets = [_scaled(node, have[axis], factor) for axis, factor in zip(axes, stated, strict=True)]
        factors = [*stated]
    for axis, target, factor in zip(axes, targets, factors, strict=True):
        if factor == 1.0 or known.same(have[axis], target):
            continue
        place = _place(where, have[axis], target, factor)
        if kind == "nearest":
            x = _nearest(g, x, axis, target, place, get.get_string("nearest_mode", "round_prefer_floor"))
        else:
            x = _blended(g, x, axis, target, place, _cubic(get.get_float("cubic_coeff_a", -0.75))
                         if kind == "cubic" else _linear)  # fmt: skip
    return x


def _scaled(node: ir.Node, size: Any, factor: float) -> Any:
    if isinstance(size, int):
        return int(np.floor(size * factor))
    if factor != int(factor):
        raise refuse(node, "a dynamic size can be scaled by whole numbers only")
    return known.simplify(size * int(factor))


# ---- where an output lies in the input ---------------------------------------------------------------------------

_Place = Callable[[Any], tirx.Expr]


def _single(size: Any) -> tirx.Expr:
    return tirx.Cast("float32", known.expression(size))


_PLACES: dict[str, Callable[[Any, Any, Any, Any], tirx.Expr]] = {
    "asymmetric": lambda i, scale, have, want: i / scale,
    "half_pixel": lambda i, scale, have, want: (i + _HALF) / scale - _HALF,
    "pytorch_half_pixel": lambda i, scale, have, want: tirx.Select(
        want > _ONE, (i + _HALF) / scale - _HALF, tirx.const(0.0, "float32")
    ),
    "align_corners": lambda i, scale, have, want: i * (have - _ONE) / tirx.max(want - _ONE, _ONE),
}


def _place(where: str, have: Any, want: Any, factor: float | None) -> _Place:
    before, after = _single(have), _single(want)
    scale = after / before if factor is None else tirx.const(factor, "float32")
    return lambda i: _PLACES[where](tirx.Cast("float32", i), scale, before, after)


_ROUNDED: dict[str, Callable[[tirx.Expr], tirx.Expr]] = {
    "floor": tirx.floor,
    "ceil": tirx.ceil,
    "round_prefer_floor": lambda v: tirx.ceil(v - _HALF),
    "round_prefer_ceil": lambda v: tirx.floor(v + _HALF),
}


def _inside(index: tirx.Expr, size: Any) -> tirx.Expr:
    return tirx.max(tirx.min(index, known.expression(size - 1)), tirx.const(0, "int64"))


def _nearest(g: Builder, x: relax.Expr, axis: int, target: Any, place: _Place, mode: str) -> relax.Expr:
    shape = g.shape(x)
    size = shape[axis]

    def element(t: Any, *index: Any) -> tirx.Expr:
        at = tirx.Cast("int64", _ROUNDED[mode](place(index[axis])))
        return t[(*index[:axis], _inside(at, size), *index[axis + 1 :])]

    return g.compute([*shape[:axis], target, *shape[axis + 1 :]], element, "nearest", x)


# ---- weighted neighbours -----------------------------------------------------------------------------------------


def _linear(t: tirx.Expr) -> dict[int, tirx.Expr]:
    return {0: _ONE - t, 1: t}


def _cubic(a: float) -> Callable[[tirx.Expr], dict[int, tirx.Expr]]:
    """Keys' convolution of four neighbours."""

    def near(d: tirx.Expr) -> tirx.Expr:
        return ((tirx.const(a + 2, "float32") * d - tirx.const(a + 3, "float32")) * d) * d + _ONE

    def far(d: tirx.Expr) -> tirx.Expr:
        c5, c8, c4 = (tirx.const(value * a, "float32") for value in (5, 8, 4))
        return ((tirx.const(a, "float32") * d - c5) * d + c8) * d - c4

    return lambda t: {-1: far(t + _ONE), 0: near(t), 1: near(_ONE - t), 2: far(_ONE - t + _ONE)}


def _blended(
    g: Builder, x: relax.Expr, axis: int, target: Any, place: _Place,
    weights: Callable[[tirx.Expr], dict[int, tirx.Expr]],
) -> relax.Expr:  # fmt: skip
    shape, dtype = g.shape(x), g.dtype(x)
    size = shape[axis]

    def element(t: Any, *index: Any) -> tirx.Expr:
        at = place(index[axis])
        base = tirx.floor(at)
        total: Any = tirx.const(0.0, dtype)
        for step, weight in weights(at - base).items():
            where = _inside(tirx.Cast("int64", base) + step, size)
            total = total + t[(*index[:axis], where, *index[axis + 1 :])] * tirx.Cast(dtype, weight)
        return total

    return g.compute([*shape[:axis], target, *shape[axis + 1 :]], element, "blend", x)
