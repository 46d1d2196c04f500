"""Operators on images: pooling, resizing, sampling; channels pass, places are fixed."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qcompile.analysis.axes import Ref, complete
from qcompile.analysis.rules.elementwise import is_one
from qcompile.analysis.rules.sizes import dims
from qcompile.analysis.spaces import Analysis, rule
from qcompile.ir.graph import is_read, label, static
from qcompile.transforms.freedom import Freedom

__all__: list[str] = []

#: What each window leaves of samples and channels.
_WINDOWS = {
    "AveragePool": Freedom.GENERAL,
    "LpPool": Freedom.POSITIVE_MONOMIAL,
    "MaxPool": Freedom.POSITIVE_MONOMIAL,
}

#: Over all places: what is left of samples and channels, and of places.
_GLOBAL = {
    "GlobalAveragePool": (Freedom.GENERAL, Freedom.ORTHOGONAL_ONES),
    "GlobalLpPool": (Freedom.POSITIVE_MONOMIAL, Freedom.ORTHOGONAL),
    "GlobalMaxPool": (Freedom.POSITIVE_MONOMIAL, Freedom.PERMUTATION),
}


def fixed_places(analysis: Analysis, node: ir.Node, refs: Sequence[Ref], first: int) -> list[Ref]:
    """Freeze axes that a window slides over; their lengths afterwards are those that the graph states."""
    shape, out = node.outputs[0].shape, []
    for i, ref in enumerate(refs):
        analysis.axes.constrain(ref, Freedom.NONE, f"{label(node)} slides over it")
        size = static(shape[first + i]) if shape is not None else None
        out.append(analysis.axes.frozen(size, f"{label(node)} slides over it"))
    return out


@rule(*_WINDOWS)
def pool(analysis: Analysis, node: ir.Node) -> None:
    """Windows over places: means are linear, maxima and norms keep positive scales."""
    refs = list(analysis.refs(node.inputs[0]))
    if is_read(node, 1):
        analysis.opaque(node, f"{label(node)} puts out where its maxima are")
        return
    for ref in refs[:2]:
        analysis.axes.constrain(ref, _WINDOWS[node.op_type], f"{label(node)} treats each channel by itself")
    analysis.set(node.outputs[0], [*refs[:2], *fixed_places(analysis, node, refs[2:], 2)])


@rule(*_GLOBAL)
def global_pool(analysis: Analysis, node: ir.Node) -> None:
    """One window over all places."""
    refs = list(analysis.refs(node.inputs[0]))
    channels, places = _GLOBAL[node.op_type]
    if node.op_type == "GlobalLpPool" and node.attributes.get_int("p", 2) != 2:
        places = Freedom.SIGNED_PERMUTATION
    for i, ref in enumerate(refs):
        analysis.axes.constrain(ref, channels if i < 2 else places, f"{label(node)} takes all places together")
    analysis.set(node.outputs[0], [*refs[:2], *[analysis.axes.one] * (len(refs) - 2)])


@rule("MaxRoiPool", "RoiAlign")
def regions(analysis: Analysis, node: ir.Node) -> None:
    """Windows at places that are computed, of a sample that is picked."""
    refs = list(analysis.refs(node.inputs[0]))
    linear = node.op_type == "RoiAlign" and node.attributes.get_string("mode", "avg") == "avg"
    kept = Freedom.GENERAL if linear else Freedom.POSITIVE_MONOMIAL
    analysis.axes.constrain(refs[1], kept, f"{label(node)} treats each channel by itself")
    analysis.axes.constrain(refs[0], Freedom.NONE, f"{label(node)} picks a sample")
    analysis.freeze(node.inputs[1:], f"{label(node)} looks where it says")
    places = fixed_places(analysis, node, refs[2:], 2)
    found = analysis.axes.frozen(analysis.axes.size(analysis.refs(node.inputs[1])[0]), f"{label(node)} has regions")
    analysis.set(node.outputs[0], [found, refs[1], *places])


@rule("GridSample")
@rule("GridSample", domain="com.microsoft")
def sample(analysis: Analysis, node: ir.Node) -> None:
    """Interpolates at places that are computed for each sample."""
    refs, grid = list(analysis.refs(node.inputs[0])), list(analysis.refs(node.inputs[1]))
    analysis.axes.constrain(refs[0], Freedom.DIAGONAL, f"{label(node)} has places for each sample")
    analysis.freeze(node.inputs[1:2], f"{label(node)} looks where it says")
    for ref in refs[2:]:
        analysis.axes.constrain(ref, Freedom.NONE, f"{label(node)} interpolates along it")
    analysis.set(node.outputs[0], [refs[0], refs[1], *grid[1:-1]])


@rule("Resize", "Upsample")
def resize(analysis: Analysis, node: ir.Node) -> None:
    """Axes that keep their length pass, the others are interpolated."""
    refs, shape = list(analysis.refs(node.inputs[0])), node.outputs[0].shape
    crops = node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    kept = set() if crops else _kept(analysis, node, refs)
    for i, ref in enumerate(refs):
        if i not in kept and not is_one(analysis, ref):
            analysis.axes.constrain(ref, Freedom.NONE, f"{label(node)} interpolates along it")
        if i not in kept:
            size = static(shape[i]) if shape is not None else None
            refs[i] = analysis.axes.frozen(size, f"{label(node)} interpolates along it")
    analysis.freeze(node.inputs[1:], f"{label(node)} takes its lengths from it")
    analysis.set(node.outputs[0], refs)


def _kept(analysis: Analysis, node: ir.Node, refs: Sequence[Ref]) -> set[int]:
    """The axes that are known to keep their length."""
    axes = [axis % len(refs) for axis in node.attributes.get_ints("axes", list(range(len(refs))))]
    others = set(range(len(refs))) - set(axes)
    if "scales" in node.attributes:
        scales = list(node.attributes.get_floats("scales"))
    else:
        found = analysis.constant(node.inputs[2 if len(node.inputs) > 2 else len(node.inputs) - 1])
        scales = [] if found is None else found.reshape(-1).tolist()
    if len(scales) == len(axes):
        return others | {axis for axis, scale in zip(axes, scales, strict=True) if scale == 1}
    sizes = dims(analysis, node.inputs[3]) if len(node.inputs) > 3 else None
    for axis, size in zip(axes, sizes or (), strict=False):
        own = refs[axis]
        if analysis.axes.same(size, own) if isinstance(size, Ref) else size == analysis.axes.size(own) is not None:
            others.add(axis)
    return others


@rule("DepthToSpace", "SpaceToDepth")
def blocks(analysis: Analysis, node: ir.Node) -> None:
    """Channels to places and back: a reshape, a transpose, a reshape."""
    refs, size = list(analysis.refs(node.inputs[0])), node.attributes.get_int("blocksize")
    depth_last = node.attributes.get_string("mode", "DCR") == "CRD"
    found = (_to_space if node.op_type == "DepthToSpace" else _to_depth)(analysis, node, refs, size, depth_last)
    if found is None:
        analysis.opaque(node, f"{label(node)} has sizes that cannot be followed")
        return
    analysis.set(node.outputs[0], found)


def _to_space(analysis: Analysis, node: ir.Node, refs: list[Ref], size: int, depth_first: bool) -> list[Ref] | None:
    axes, channels = analysis.axes, analysis.axes.size(refs[1])
    if channels is None:
        return None
    inner = channels // size**2
    order = [inner, size, size] if depth_first else [size, size, inner]
    parts = axes.as_product(refs[1], order, label(node))
    if parts is None:
        return None
    depth, rows, columns = parts if depth_first else (parts[2], parts[0], parts[1])
    return [refs[0], depth, axes.product([refs[2], rows]), axes.product([refs[3], columns])]


def _to_depth(analysis: Analysis, node: ir.Node, refs: list[Ref], size: int, depth_first: bool) -> list[Ref] | None:
    axes, parts = analysis.axes, []
    for ref in refs[2:]:
        length = axes.size(ref)
        parts.append(None if length is None else axes.as_product(ref, [length // size, size], label(node)))
    found = complete(parts)
    if found is None:
        return None
    (high, rows), (wide, columns) = found
    order = [refs[1], rows, columns] if depth_first else [rows, columns, refs[1]]
    return [refs[0], axes.product(order), high, wide]


@rule("Col2Im")
def columns(analysis: Analysis, node: ir.Node) -> None:
    """Adds up blocks that lie side by side in ``[batch, channels * block, places]``."""
    refs, block = list(analysis.refs(node.inputs[0])), analysis.constant(node.inputs[2])
    size, shape = analysis.axes.size(refs[1]), dims(analysis, node.inputs[1])
    count = None if block is None else int(block.prod())
    parts = size and count and analysis.axes.as_product(refs[1], [size // count, count], label(node))
    if not parts or shape is None:
        analysis.opaque(node, f"{label(node)} has blocks that cannot be followed")
        return
    for ref in (parts[1], refs[2]):
        analysis.axes.constrain(ref, Freedom.NONE, f"{label(node)} puts it in places")
    places = [analysis.axes.frozen(dim if isinstance(dim, int) else None, label(node)) for dim in shape]
    analysis.set(node.outputs[0], [refs[0], parts[0], *places])
