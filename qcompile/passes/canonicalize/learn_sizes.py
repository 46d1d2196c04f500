"""Learn sizes: those of axes that the graph does not state but that follow from how its values are made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from qcompile.analysis.analyze import analyze
from qcompile.analysis.spaces import RULES
from qcompile.ir.graph import bodies, is_float, snapshot
from qcompile.passes.state import State

__all__ = ["LearnSizes"]


@dataclass(frozen=True)
class LearnSizes:
    """Write down the sizes of axes, and the types of what operators of onnxruntime make."""

    name: ClassVar[str] = "learn-sizes"

    def apply(self, state: State) -> bool:
        """Add to what the graph says of its values."""
        before = snapshot(state.model)
        _learn(state.model)
        changed = snapshot(state.model) != before
        if changed:
            state.edited()
        return changed


def _learn(model: ir.Model) -> None:
    """Write down the sizes of axes that the graph does not state but that follow from how its values are made.

    Exporters that trace leave every dimension behind a Reshape open, heads and features included.
    """
    for node in model.graph:
        _learn_type(node)
    values = [value for node in model.graph for value in node.outputs]
    if all(value.shape is not None and None not in map(_stated, value.shape) for value in values):
        return
    analysis = analyze(model)
    for value in values:
        refs = analysis.refs_of.get(value)
        if refs is not None and (value.shape is None or len(value.shape) == len(refs)):
            old = value.shape if value.shape is not None else [None] * len(refs)
            sizes = [analysis.axes.size(ref) for ref in refs]
            value.shape = ir.Shape([dim if size is None else size for dim, size in zip(old, sizes, strict=True)])


#: What makes numbers of another type than those that it reads.
_OTHER_TYPE = re.compile("Cast|Shape|Size|NonZero|Arg|Is|Equal|Less|Greater|Not|Pow|Quantize|Integer|QLinear|OneHot")


def _learn_type(node: ir.Node) -> None:
    """The type of what an operator of onnxruntime makes, and of what follows: that of the numbers that it reads."""
    kinds = {value.type for value in node.inputs if value is not None and is_float(value)}
    known = (node.domain, node.op_type) in RULES and not _OTHER_TYPE.search(node.op_type) and not bodies(node)
    for made in node.outputs if node.op_type == "Split" else node.outputs[:1]:
        if made.type is None and len(kinds) == 1 and known:
            made.type = next(iter(kinds))


def _stated(dim: object) -> object:
    """What a graph says of a dimension: a number, a name, or nothing."""
    return getattr(dim, "value", dim)
