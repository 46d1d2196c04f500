"""The work of operators that are no sites, from the shapes that they saw."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from qcompile.prices.linear_model import elements
from qcompile.prices.profile import OTHER
from qcompile.run.trace import Step

__all__ = ["KINDS", "operator_kind", "operator_work", "spans"]

#: Operators by kind; those of one kind take the time of the first, which is measured.
KINDS: Mapping[str, tuple[str, ...]] = {
    "view": ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Size"),
    "copy": ("Concat", "Split", "Slice", "Gather", "Expand", "Pad", "Tile", "GatherND", "ScatterND", "Range"),
    "transpose": ("Transpose",),
    "arithmetic": ("Add", "Sub", "Mul", "Div", "Neg", "Relu", "Min", "Max", "Clip", "Abs", "Sqrt", "Reciprocal",
                   "Cast"),
    "select": ("Where", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Not", "IsNaN"),
    "exponential": ("Sigmoid", "Exp", "Tanh", "QuickGelu", "Swish", "HardSwish"),
    "gelu": ("Gelu", "BiasGelu", "FastGelu", "Erf"),
    "logarithm": ("Softplus", "Log", "Mish"),  # of one element after the other
    "sine": ("Sin", "Cos"),
    "power": ("Pow",),
    "softmax": ("Softmax", "LogSoftmax"),
    "norm": ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization",
             "SkipSimplifiedLayerNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization"),
    "reduction": ("ReduceMean", "ReduceSum", "ReduceMax", "GlobalAveragePool", "AveragePool", "MaxPool", "ArgMax",
                  "CumSum"),
    "matmul": ("MatMul", "FusedMatMul", "Gemm", "Einsum"),
    "attention": ("Attention", "MultiHeadAttention", "GroupQueryAttention"),
}  # fmt: skip

_KIND = {name: kind for kind, names in KINDS.items() for name in names}

#: Operators whose time is that of their bodies, which are steps of their own.
AROUND = ("If", "Loop", "Scan")


def operator_kind(step: Step) -> str:
    """The kind that a step is priced as."""
    return _KIND.get(step.op, OTHER)


def operator_work(step: Step) -> dict[str, float]:
    """Calls, elements and multiply-adds of a step."""
    read, written = (sum(map(math.prod, shapes)) for shapes in (step.inputs, step.outputs))
    work = {"call": 1.0}
    kind = operator_kind(step)
    if kind != "view" and step.op not in AROUND:
        work |= elements("element", max(read if kind in ("reduction", "attention") else 0, written))
    if kind in ("arithmetic", "select"):
        work["span"] = float(spans(step.inputs))
    if kind == "matmul" and step.inputs and step.inputs[0]:
        work["multiply_add"] = float(written * step.inputs[0][-1])
    if kind == "attention" and len(step.inputs) > 1 and len(step.inputs[1]) > 2:
        *_, keys, size = step.inputs[1]
        scores = math.prod(step.inputs[0]) / size * keys
        work |= {"multiply_add": 2 * scores * size, **elements("score", scores)}
    return work


def spans(shapes: Sequence[Sequence[int]]) -> int:
    """Stretches of memory that an operator takes one after the other, because some operands are shorter; else 0.

    A stretch ends where an operand begins anew or goes on, that did otherwise along the axes behind.
    """
    rank = max(map(len, shapes), default=0)
    aligned = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    axes = [sizes for sizes in zip(*aligned, strict=True) if max(sizes) > 1]
    ways = [tuple(size == max(sizes) for size in sizes) for sizes in axes]
    behind = len(list(itertools.takewhile(lambda way: way == ways[-1], reversed(ways))))
    return math.prod(map(max, axes[: len(axes) - behind])) if behind < len(axes) else 0
