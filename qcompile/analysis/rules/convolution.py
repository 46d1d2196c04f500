"""Convolutions: channels are linear, places are fixed unless the kernel is 1."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.analysis.axes import Ref
from qcompile.analysis.rules.elementwise import gate
from qcompile.analysis.rules.linear import add_channel_bias, contract, is_weight
from qcompile.analysis.spaces import Analysis, Site, rule
from qcompile.ir.graph import label, static
from qcompile.ir.required import operand, optional
from qcompile.transforms.freedom import Freedom

__all__ = ["conv"]


@rule("Conv", "ConvTranspose")
def conv(analysis: Analysis, node: ir.Node) -> None:
    """Channels are linear (one channel alone if depthwise); places are fixed unless the kernel is 1."""
    x, weight = (analysis.refs(value) for value in node.inputs[:2])
    groups = node.attributes.get_int("group", 1)
    read, write = (0, 1) if node.op_type == "ConvTranspose" else (1, 0)
    channels: Ref | None
    if groups == 1:
        contract(analysis, x[1], weight[read], label(node))
        channels = weight[write]
    else:
        channels = _grouped(analysis, node, x[1], weight, groups, read)
    if channels is None:
        analysis.opaque(node, f"{label(node)} has groups that cannot be followed")
        return
    if is_weight(operand(node, 1)):
        analysis.sites.append(Site(node, operand(node, 1), operand(node, 0), read, write, x[1], channels))
    places = _places(analysis, node, x[2:], weight[2:])
    if optional(node, 2) is not None:
        add_channel_bias(analysis, node, channels, analysis.refs(node.inputs[2])[0], [x[0], *places])
    analysis.set(node.outputs[0], [x[0], channels, *places])


def _grouped(analysis: Analysis, node: ir.Node, x: Ref, weight: list[Ref], groups: int, read: int) -> Ref | None:
    axes, reason = analysis.axes, label(node)
    size, first = axes.size(x), axes.size(weight[0])
    if size is None or first is None or axes.size(weight[1]) is None:
        return None
    parts = axes.as_product(weight[0], [groups, first // groups], reason)
    read_parts = axes.as_product(x, [groups, size // groups], reason)
    if parts is None or read_parts is None:
        return None
    inside, outside = (parts[1], weight[1]) if read == 0 else (weight[1], parts[1])  # [in, out / groups], or reversed
    contract(analysis, read_parts[1], inside, reason)
    return axes.product([gate(analysis, read_parts[0], parts[0], reason), outside])


def _places(analysis: Analysis, node: ir.Node, x: list[Ref], kernel: list[Ref]) -> list[Ref]:
    strides = node.attributes.get_ints("strides", [1] * len(x))
    pads = node.attributes.get_ints("pads", [0] * 2 * len(x))
    shape = node.outputs[0].shape
    out = []
    for i, ref in enumerate(x):
        analysis.axes.constrain(kernel[i], Freedom.NONE, f"{label(node)} reads it by place")
        if analysis.axes.size(kernel[i]) == 1 and strides[i] == 1 and not pads[i] and not pads[i + len(x)]:
            out.append(ref)
            continue
        analysis.axes.constrain(ref, Freedom.NONE, f"{label(node)} slides over it")
        size = static(shape[2 + i]) if shape is not None else _length(analysis, node, i, ref, kernel[i])
        out.append(analysis.axes.frozen(size, f"{label(node)} slides over it"))
    return out


def _length(analysis: Analysis, node: ir.Node, place: int, ref: Ref, kernel: Ref) -> int | None:
    """The places of a convolution, for operators whose result the graph does not state."""
    size, width = analysis.axes.size(ref), analysis.axes.size(kernel)
    if size is None or width is None or node.op_type == "ConvTranspose" or "auto_pad" in node.attributes:
        return None
    get = node.attributes.get_ints
    pads = list(get("pads", []))
    around = pads[place] + pads[place + len(pads) // 2] if pads else 0
    stride, dilation = (list(get(name, []) or [1] * (place + 1))[place] for name in ("strides", "dilations"))
    return (size + around - dilation * (width - 1) - 1) // stride + 1


@rule("DeformConv")
def deformable(analysis: Analysis, node: ir.Node) -> None:
    """A convolution that reads at places of its own for each output: channels are linear where there are no groups."""
    attributes = node.attributes
    x, weight, offset = (analysis.refs(value) for value in node.inputs[:3])
    if attributes.get_int("group", 1) > 1 or attributes.get_int("offset_group", 1) > 1:
        analysis.opaque(node, f"{label(node)} has groups")
        return
    contract(analysis, x[1], weight[1], label(node))
    for ref in [*x[2:], *weight[2:]]:
        analysis.axes.constrain(ref, Freedom.NONE, f"{label(node)} reads it by place")
    analysis.axes.constrain(x[0], Freedom.DIAGONAL, f"{label(node)} has places for each sample")
    analysis.freeze([node.inputs[2], *node.inputs[4:]], f"{label(node)} places its kernel by it")
    places = [analysis.axes.frozen(analysis.axes.size(ref), f"{label(node)} slides over it") for ref in offset[2:]]
    if optional(node, 3) is not None:
        add_channel_bias(analysis, node, weight[0], analysis.refs(node.inputs[3])[0], x[:1])
    analysis.set(node.outputs[0], [x[0], weight[0], *places])


@rule("AveragePool", "Conv", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReorderInput", "ReorderOutput",
      "Upsample", domain="com.microsoft.nchwc")  # fmt: skip
def blocked_layout(analysis: Analysis, node: ir.Node) -> None:
    """Channels in blocks as wide as one processor wants them, by the last level of optimization: as they are."""
    reason = f"{label(node)} is in the layout of one processor: optimize the graph at a lower level"
    analysis.freeze(node.inputs, reason)
    sizes: list[int | None] = [None] * 4
    if node.op_type == "ReorderOutput":
        sizes[3 if node.attributes.get_int("channels_last", 0) else 1] = node.attributes.get_int("channels")
    analysis.set(node.outputs[0], [analysis.axes.frozen(size, reason) for size in sizes])
