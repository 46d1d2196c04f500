"""Random convolutional networks: strides, dilations, groups, transposed kernels, norms, gates, joins, heads.

``grow(seed)`` is deterministic. Blocks are those of networks that people have, in random order and sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["Network", "grow"]

ACTIVATIONS = ("Relu", "ReLU6", "SiLU", "HardSwish", "LeakyRelu", "PRelu", "GELU", "Tanh", "none", "Relu", "Relu")


@dataclass(frozen=True)
class Place:
    """A value of a network: its name, channels, and the sizes of its axes."""

    name: str
    channels: int
    sizes: tuple[int, ...]


@dataclass
class Network:
    """A network under construction; ``model`` is what it is so far."""

    seed: int
    axes: int = 2
    opset: int = 17
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    blocks: list[str] = field(default_factory=list)
    outputs: list[Place] = field(default_factory=list)
    first: Place = field(init=False)

    def __post_init__(self) -> None:
        """Draw the input."""
        self.rng = np.random.default_rng(self.seed)
        side = {1: 64, 2: 16, 3: 8}[self.axes]
        self.first = Place("x", self.pick((1, 3, 3, 4)), (side,) * self.axes)

    @property
    def model(self) -> onnx.ModelProto:
        """The network as ONNX, its batch symbolic."""
        stored = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        ends = [helper.make_tensor_value_info(end.name, TensorProto.FLOAT, None) for end in self.outputs]
        shape = ["n", self.first.channels, *self.first.sizes]
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "cnn", [given], ends, stored)
        opset = helper.make_opsetid("", self.opset)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=8 if self.opset < 21 else 10)
        return onnx.shape_inference.infer_shapes(model)

    def data(self, count: int, seed: int = 0) -> np.ndarray:
        """Smooth pictures with noise: neighbours are alike, as in nature."""
        rng = np.random.default_rng((self.seed, seed))
        coarse = rng.standard_normal((count, self.first.channels, *(-(-size // 4) for size in self.first.sizes)))
        for axis in range(2, coarse.ndim):
            coarse = coarse.repeat(4, axis)
        noise = rng.standard_normal(coarse.shape)
        return (0.5 + coarse + 0.2 * noise).astype(np.float32)

    def pick(self, words: tuple[Any, ...]) -> Any:
        """One of some things."""
        return words[int(self.rng.integers(len(words)))]

    def op(self, kind: str, *inputs: str, count: int = 1, **attributes: Any) -> str:
        """Append an operator, and return the name of its first output."""
        name = f"{kind.lower()}{len(self.nodes)}"
        outputs = [name, *(f"{name}.{i}" for i in range(1, count))]
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=f"/{name}", **attributes))
        return name

    def constant(self, array: np.ndarray | list[Any], kind: type = np.float32) -> str:
        """Store an array."""
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array, kind)
        return name

    def conv(
        self, x: Place, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, dilation: int = 1,
        bias: bool = True,
    ) -> Place:  # fmt: skip
        """A convolution that keeps sizes, over strides."""
        shape = (out, x.channels // groups, *(kernel,) * self.axes)
        fan = np.prod(shape[1:])
        loud = np.exp(0.3 * self.rng.standard_normal((out, *(1,) * (self.axes + 1))))
        weight = self.constant(self.rng.standard_normal(shape) * np.sqrt(1.6 / fan) * loud)
        more = [self.constant(0.2 * self.rng.standard_normal(out))] if bias else []
        pad = dilation * (kernel - 1) // 2
        padded = bool(self.pick((1, 1, 0))) or dilation > 1
        around: dict[str, Any] = {"pads": [pad] * (2 * self.axes)} if padded else {"auto_pad": "SAME_UPPER"}
        strides, dilations = [stride] * self.axes, [dilation] * self.axes
        y = self.op("Conv", x.name, weight, *more, group=groups, strides=strides, dilations=dilations, **around)
        sizes = tuple(-(-size // stride) for size in x.sizes)
        return Place(y, out, sizes)

    def norm(self, x: Place) -> Place:
        """A batch norm with statistics as training leaves them."""
        n = x.channels
        parts = [self.rng.uniform(0.6, 1.4, n), 0.3 * self.rng.standard_normal(n), 0.3 * self.rng.standard_normal(n),
                 self.rng.uniform(0.4, 1.6, n)]  # fmt: skip
        return Place(self.op("BatchNormalization", x.name, *map(self.constant, parts)), n, x.sizes)

    def act(self, x: Place, kind: str | None = None) -> Place:
        """An activation."""
        kind = kind or self.pick(ACTIVATIONS)
        if kind == "HardSwish" and self.opset < 14:
            kind = "SiLU"
        y = x.name
        if kind == "ReLU6":
            y = self.op("Clip", y, self.constant(0.0), self.constant(6.0))
        elif kind == "SiLU":
            y = self.op("Mul", y, self.op("Sigmoid", y))
        elif kind == "LeakyRelu":
            y = self.op("LeakyRelu", y, alpha=0.1)
        elif kind == "PRelu":
            slopes = self.rng.uniform(0.1, 0.3, (x.channels, *(1,) * self.axes))
            y = self.op("PRelu", y, self.constant(slopes))
        elif kind == "GELU":
            inner = self.op("Erf", self.op("Div", y, self.constant(2**0.5)))
            y = self.op("Mul", self.op("Mul", y, self.op("Add", inner, self.constant(1.0))), self.constant(0.5))
        elif kind != "none":
            y = self.op(kind, y)
        return Place(y, x.channels, x.sizes)

    def block(self, x: Place, out: int, **options: Any) -> Place:
        """A convolution, perhaps a batch norm, and an activation."""
        normed = bool(self.pick((0, 1)))
        y = self.conv(x, out, bias=not normed or bool(self.pick((0, 1))), **options)
        return self.act(self.norm(y) if normed else y)


def grow(seed: int, axes: int = 2, opset: int = 17, blocks: int = 4) -> Network:
    """A random network of blocks, with a head."""
    net = Network(seed, axes, opset)
    x = net.block(net.first, net.pick((8, 16, 24)), kernel=net.pick((3, 5)), stride=net.pick((1, 2)))
    names = [name for name in BLOCKS if axes == 2 or name not in ("shuffle", "upsampled", "convnext")]
    for _ in range(blocks):
        name = net.pick(tuple(names))
        net.blocks.append(name)
        x = BLOCKS[name](net, x)
    net.blocks.append(net.pick(tuple(HEADS)))
    HEADS[net.blocks[-1]](net, x)
    return net


def _plain(net: Network, x: Place) -> Place:
    return net.block(x, net.pick((16, 20, 32)), kernel=net.pick((1, 3)), stride=net.pick((1, 2)))


def _dilated(net: Network, x: Place) -> Place:
    return net.block(x, x.channels, dilation=2)


def _grouped(net: Network, x: Place) -> Place:
    return net.block(x, 2 * x.channels, groups=net.pick((2, 4)), stride=net.pick((1, 2)))


def _inverted(net: Network, x: Place) -> Place:
    wide = net.block(x, 3 * x.channels, kernel=1)
    deep = net.block(wide, wide.channels, kernel=net.pick((3, 5)), groups=wide.channels)
    narrow = net.norm(net.conv(deep, x.channels, kernel=1, bias=False))
    return Place(net.op("Add", x.name, narrow.name), x.channels, x.sizes)


def _residual(net: Network, x: Place) -> Place:
    inner = net.norm(net.conv(net.block(x, x.channels), x.channels))
    return net.act(Place(net.op("Add", inner.name, x.name), x.channels, x.sizes))


def _squeezed(net: Network, x: Place) -> Place:
    """Squeeze and excitation."""
    y = net.block(x, x.channels)
    mean = Place(net.op("GlobalAveragePool", y.name), y.channels, (1,) * net.axes)
    small = net.act(net.conv(mean, max(y.channels // 4, 4), kernel=1), "Relu")
    gate = net.op(net.pick(("Sigmoid", "HardSigmoid")), net.conv(small, y.channels, kernel=1).name)
    return Place(net.op("Mul", y.name, gate), y.channels, y.sizes)


def _branched(net: Network, x: Place) -> Place:
    parts = [net.block(x, 8, kernel=kernel) for kernel in (1, 3, 5)]
    pooled = net.op("MaxPool", x.name, kernel_shape=[3] * net.axes, pads=[1] * (2 * net.axes))
    joined = net.op("Concat", *(part.name for part in parts), pooled, axis=1)
    return Place(joined, 24 + x.channels, x.sizes)


def _split(net: Network, x: Place) -> Place:
    """Half of the channels goes on, half waits, as in YOLO's C2f."""
    y = net.block(x, 16, kernel=1)
    given = [net.constant([8, 8], np.int64)]
    first = net.op("Split", y.name, *given, count=2, axis=1)
    inner = net.block(Place(f"{first}.1", 8, y.sizes), 8)
    return net.block(Place(net.op("Concat", first, f"{first}.1", inner.name, axis=1), 24, y.sizes), 16, kernel=1)


def _pooled(net: Network, x: Place) -> Place:
    if min(x.sizes) < 2:
        return x
    kind = net.pick(("MaxPool", "AveragePool"))
    y = net.op(kind, x.name, kernel_shape=[2] * net.axes, strides=[2] * net.axes)
    return Place(y, x.channels, tuple(size // 2 for size in x.sizes))


def _padded(net: Network, x: Place) -> Place:
    mode = net.pick(("constant", "edge"))
    pads = [0, 0, *(1,) * net.axes] * 2
    y = net.op("Pad", x.name, net.constant(pads, np.int64), mode=mode)
    weight = net.constant(
        net.rng.standard_normal((16, x.channels, *(3,) * net.axes)) / np.sqrt(x.channels * 3**net.axes)
    )
    return net.act(Place(net.op("Conv", y, weight), 16, x.sizes))


def _transposed(net: Network, x: Place) -> Place:
    groups, out = (net.pick((1, 2)) if x.channels % 2 == 0 else 1), 16
    weight = net.rng.standard_normal((x.channels, out // groups, *(2,) * net.axes)) / np.sqrt(x.channels / groups)
    bias = [net.constant(0.1 * net.rng.standard_normal(out))] if net.pick((0, 1)) else []
    y = net.op("ConvTranspose", x.name, net.constant(weight), *bias, strides=[2] * net.axes, group=groups)
    return net.block(Place(y, out, tuple(2 * size for size in x.sizes)), 16, stride=2)


def _upsampled(net: Network, x: Place) -> Place:
    """Down, up, and joined with what was skipped, as in a U-Net."""
    down = net.block(x, 16, stride=2)
    if any(size % 2 for size in x.sizes):
        return down
    scales = net.constant([1.0, 1.0, 2.0, 2.0])
    mode = net.pick(("nearest", "linear"))
    up = net.op("Resize", down.name, "", scales, mode=mode)
    return net.block(Place(net.op("Concat", up, x.name, axis=1), 16 + x.channels, x.sizes), 16)


def _shuffle(net: Network, x: Place) -> Place:
    if x.channels % 2:
        return net.block(x, 16, kernel=1)
    sizes = [0, 2, x.channels // 2, *x.sizes], [0, x.channels, *x.sizes]
    cut = net.op("Reshape", x.name, net.constant(sizes[0], np.int64))
    turned = net.op("Transpose", cut, perm=[0, 2, 1, 3, 4])
    y = net.op("Reshape", turned, net.constant(sizes[1], np.int64))
    return net.block(Place(y, x.channels, x.sizes), x.channels, groups=2)


def _convnext(net: Network, x: Place) -> Place:
    deep = net.conv(x, x.channels, kernel=5, groups=x.channels)
    last = net.op("Transpose", deep.name, perm=[0, 2, 3, 1])
    n, rng = x.channels, net.rng
    if net.opset >= 17:
        norm = map(net.constant, (rng.uniform(0.5, 1.5, n), 0.2 * rng.standard_normal(n)))
        last = net.op("LayerNormalization", last, *norm, axis=-1)
    wide = net.op("MatMul", last, net.constant(rng.standard_normal((n, 4 * n)) / np.sqrt(n)))
    wide = net.op("Add", wide, net.constant(0.1 * rng.standard_normal(4 * n)))
    wide = net.act(Place(wide, 4 * n, x.sizes), "GELU").name
    y = net.op("MatMul", wide, net.constant(rng.standard_normal((4 * n, n)) / np.sqrt(4 * n)))
    y = net.op("Transpose", y, perm=[0, 3, 1, 2])
    return Place(net.op("Add", x.name, y), n, x.sizes)


def _instance(net: Network, x: Place) -> Place:
    y = net.conv(x, x.channels)
    parts = net.rng.uniform(0.5, 1.5, x.channels), 0.2 * net.rng.standard_normal(x.channels)
    return net.act(Place(net.op("InstanceNormalization", y.name, *map(net.constant, parts)), x.channels, x.sizes))


BLOCKS: dict[str, Callable[[Network, Place], Place]] = {
    "plain": _plain, "dilated": _dilated, "grouped": _grouped, "inverted": _inverted, "residual": _residual,
    "squeezed": _squeezed, "branched": _branched, "split": _split, "pooled": _pooled, "padded": _padded,
    "transposed": _transposed, "upsampled": _upsampled, "shuffle": _shuffle, "convnext": _convnext,
    "instance": _instance,
}  # fmt: skip


def _classified(net: Network, x: Place) -> None:
    flat = net.op("Flatten", net.op("GlobalAveragePool", x.name))
    weight = net.constant(net.rng.standard_normal((10, x.channels)) / np.sqrt(x.channels))
    y = net.op("Gemm", flat, weight, net.constant(0.1 * net.rng.standard_normal(10)), transB=1)
    net.outputs.append(Place(y, 10, ()))


def _flattened(net: Network, x: Place) -> None:
    count = x.channels * int(np.prod(x.sizes))
    flat = net.op("Reshape", x.name, net.constant([-1, count], np.int64))
    y = net.op("MatMul", flat, net.constant(net.rng.standard_normal((count, 10)) / np.sqrt(count)))
    net.outputs.append(Place(net.op("Add", y, net.constant(0.1 * net.rng.standard_normal(10))), 10, ()))


def _detected(net: Network, x: Place) -> None:
    """Two heads, on one value."""
    net.outputs.append(net.conv(x, 12, kernel=1))
    score = net.conv(net.block(x, 16), 4, kernel=1)
    net.outputs.append(Place(net.op("Sigmoid", score.name), 4, score.sizes))


HEADS: dict[str, Callable[[Network, Place], None]] = {
    "classified": _classified, "flattened": _flattened, "detected": _detected
}  # fmt: skip
