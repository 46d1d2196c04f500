"""Rotate: put chosen transforms into the graph. What meets a constant folds, the rest stays as function nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.analysis.boundaries import boundaries
from qcompile.analysis.folding import change_axes, fold
from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Analysis
from qcompile.choice.placement import Placement
from qcompile.ir.functions import DOMAIN, ensure_function
from qcompile.ir.graph import append_node, bodies, ensure_initializer
from qcompile.passes.state import State

if TYPE_CHECKING:
    from qcompile.transforms import Transform

__all__ = ["Rotate"]


@dataclass(frozen=True)
class Rotate:
    """Apply a placement.

    Args:
        analysis: of the graph as it stands.
        groups: the sites by the value that they read.
        placement: the chosen transforms.
    """

    analysis: Analysis
    groups: tuple[Siblings, ...]
    placement: Placement
    name: ClassVar[str] = "rotate"

    def apply(self, state: State) -> bool:
        """Folds offline transforms, then puts online ones in front of their sites."""
        fold(self.analysis, self.placement.offline)
        folded: set[tuple[ir.Value, int]] = set()
        for group in self.groups:
            transform = self.placement.online.get(group.value.name)
            if transform is not None:
                insert_online(state.model, group, transform, folded)
            elif (reason := self.placement.skipped.get(group.value.name)) is not None:
                for site in group.sites:
                    state.decline(site.name, "an online transform of its input", reason)
        self._settle_boundaries(state.model)
        state.edited()
        return bool(self.placement.offline or self.placement.online)

    def _settle_boundaries(self, model: ir.Model) -> None:
        """Boundaries between two bases become online transforms; the others go."""
        for wall in boundaries(self.analysis):
            (value,), (old,) = wall.node.inputs, wall.node.outputs
            new, name = value, old.name
            if wall.node.name in self.placement.boundaries:
                transform, _ = self.placement.boundaries[wall.node.name]
                new = _emit(model, wall.node, value, value, transform, f"{name}_transformed")
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            wall.node.graph.remove(wall.node, safe=True)
            if new.is_graph_output():
                old.name, new.name = None, name


def insert_online(
    model: ir.Model, group: Siblings, transform: Transform, folded: set[tuple[ir.Value, int]]
) -> ir.Value:
    """Put ``T`` between a value and its sites, and ``T⁻ᵀ`` into their weights along the axis that they read.

    Args:
        folded: the (weight, axis) pairs that have it already, because another group shares the weight; added to.
    """
    value = group.value
    dual = transform.dual()
    for weight, axis in dict.fromkeys((site.weight, site.axis_in) for site in group.sites):
        if (weight, axis) in folded:
            continue
        folded.add((weight, axis))
        change_axes(model, weight, [(axis, dual)])
    made = _emit(model, _first_reader(group), value, group.sites[0].weight, transform, f"{value.name}_transformed")
    for site in group.sites:
        for index, read in enumerate(site.node.inputs):
            if read is value:
                site.node.replace_input_with(index, made)
    return made


def _first_reader(group: Siblings) -> ir.Node:
    """The first operator of the value's own graph that is a site of the group or holds one in its bodies."""
    wanted = {site.node for site in group.sites}
    if all(node.graph is group.value.graph for node in wanted):
        return group.sites[0].node  # they stand in the order of the graph
    within = (node for node in group.value.graph if wanted.intersection((node, *_inner(node))))
    return next(within)


def _inner(node: ir.Node) -> list[ir.Node]:
    return [inner for body in bodies(node) for inner in body.all_nodes()]


def _emit(
    model: ir.Model, before: ir.Node, value: ir.Value, like: ir.Value, transform: Transform, name: str
) -> ir.Value:
    """One function node for the transform of the last axis; its matrices are inputs, so that graphs stay small."""
    dtype = like.dtype.numpy()
    steps = transform.factors()
    batched = any(matrix.ndim == 3 or inner > 1 for _, inner, matrix in steps)
    start, end, suffix = _with_a_row(transform.size) if batched and _may_be_empty(model, value) else _as_it_is()
    body, inputs = ["shape = Shape(x)", *start], [value]
    for i, (outer, inner, matrix) in enumerate(steps):
        lines, constant = _step(i, outer, inner, matrix.numpy(), transform.size)
        body += lines
        content = constant if np.issubdtype(constant.dtype, np.integer) else constant.astype(dtype)
        inputs.append(ensure_initializer(model, _constant_name(content), content))
    body += [f"last = Identity(v{len(steps)})", *end]
    kind = "".join(part.capitalize() for part in transform.kind.split("-"))
    signature = ", ".join(["x", *(f"m{i}" for i in range(len(steps)))])
    form = "_".join(_form(outer, inner, matrix.numpy()) for outer, inner, matrix in steps) + suffix
    function = ensure_function(model, f"Transform{kind}_{form}", f"({signature}) => (y) {{ " + "\n".join(body) + " }")
    node = append_node(before, function, inputs, name=name, domain=DOMAIN, like=value)
    return node.outputs[0]


#: Operators whose result has as many rows as the data asks for: perhaps none.
_UNCOUNTED = {"Compress", "NonMaxSuppression", "NonZero", "Unique"}


def _may_be_empty(model: ir.Model, value: ir.Value) -> bool:
    """Whether a value may have no row though the inputs have some, as that of an expert which no token chose."""
    named = {str(dim.value) for given in model.graph.inputs for dim in given.shape or () if not isinstance(dim, int)}
    if value.shape is not None and all(isinstance(dim, int) or str(dim.value) in named for dim in value.shape):
        return False
    seen, queue = set(), [value]
    while queue:
        node = queue.pop().producer()
        if node is None or node in seen:
            continue
        if node.op_type in _UNCOUNTED:
            return True
        seen.add(node)
        queue.extend(read for read in node.inputs if read is not None)
    return False


def _as_it_is() -> tuple[list[str], list[str], str]:
    """Lines before and after the steps, and what a function's name says of them."""
    return ["v0 = Identity(x)"], ["y = Reshape(last, shape)"], ""


def _with_a_row(size: int) -> tuple[list[str], list[str], str]:
    """The same around a row of zeros more: onnxruntime's batched product of nothing ends the process."""
    start = [f"flat = Constant <value = int64[2] {{-1, {size}}}> ()", "rows = Reshape(x, flat)",
             "more = Constant <value = int64[4] {0, 0, 1, 0}> ()", "v0 = Pad(rows, more)"]  # fmt: skip
    end = ["zero = Constant <value = int64[1] {0}> ()", "end = Constant <value = int64[1] {-1}> ()",
           "all = Reshape(last, flat)", "own = Slice(all, zero, end, zero)", "y = Reshape(own, shape)"]  # fmt: skip
    return start, end, "_padded"


def _form(outer: int, inner: int, matrix: np.ndarray) -> str:
    """What the body of a step depends on, besides the numbers: a permutation ``p``, a diagonal ``v``, a stack ``s``."""
    if matrix.ndim == 1:
        return f"{'p' if np.issubdtype(matrix.dtype, np.integer) else 'v'}{len(matrix)}"
    return f"{outer}x{matrix.shape[-1]}x{inner}" + ("s" if matrix.ndim == 3 else "")


def _constant_name(content: np.ndarray) -> str:
    import hashlib

    return f"transform_{hashlib.sha256(content.tobytes() + str(content.shape).encode()).hexdigest()[:16]}"


def _step(i: int, outer: int, inner: int, matrix: np.ndarray, size: int) -> tuple[list[str], np.ndarray]:
    """Lines that compute ``v{i+1}`` from ``v{i}``, and the constant that they read as ``m{i}``."""
    source, result = f"v{i}", f"v{i + 1}"
    if matrix.ndim == 1 and np.issubdtype(matrix.dtype, np.integer):
        return [f"r{i} = Constant <value = int64[2] {{-1, {size}}}> ()", f"w{i} = Reshape({source}, r{i})",
                f"{result} = Gather <axis = 1> (w{i}, m{i})"], matrix  # fmt: skip
    if matrix.ndim == 1:
        return [f"r{i} = Constant <value = int64[2] {{-1, {size}}}> ()", f"w{i} = Reshape({source}, r{i})",
                f"{result} = Mul(w{i}, m{i})"], matrix  # fmt: skip
    width = matrix.shape[-1]
    if matrix.ndim == 3 and inner > 1:  # one matrix per block, along a slow part of it
        sizes = f"{{-1, {outer}, {width}, {inner}}}"
        return [f"r{i} = Constant <value = int64[4] {sizes}> ()", f"w{i} = Reshape({source}, r{i})",
                f"{result} = MatMul(m{i}, w{i})"], matrix  # fmt: skip
    if matrix.ndim == 3:  # one matrix per block: batched over blocks, rows of the input in each batch
        return [f"r{i} = Constant <value = int64[3] {{-1, {outer}, {width}}}> ()", f"w{i} = Reshape({source}, r{i})",
                f"a{i} = Transpose <perm = [1, 0, 2]> (w{i})", f"b{i} = MatMul(a{i}, m{i})",
                f"{result} = Transpose <perm = [1, 0, 2]> (b{i})"], matrix.transpose(0, 2, 1)  # fmt: skip
    if inner == 1:
        return [f"r{i} = Constant <value = int64[2] {{-1, {width}}}> ()", f"w{i} = Reshape({source}, r{i})",
                f"{result} = MatMul(w{i}, m{i})"], matrix.T  # fmt: skip
    return [f"r{i} = Constant <value = int64[3] {{-1, {width}, {inner}}}> ()", f"w{i} = Reshape({source}, r{i})",
            f"{result} = MatMul(m{i}, w{i})"], matrix  # fmt: skip
