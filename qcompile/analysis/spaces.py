"""Finds the spaces of a graph: the axes that must change basis together, and the freedom that each has.

Every value, weights included, has one axis reference per dimension; each operator has one rule (``rules``) that joins
the references of its inputs and outputs and constrains them. An operator without a rule leaves no freedom. Because a
weight is a value like any other, folding a transform into it means transforming its axes, and no operator needs code of
its own for that.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from qcompile.analysis.axes import Axes, AxisNode, Limit, Mode, Ref, Structure
from qcompile.errors import InternalError
from qcompile.ir.graph import SMALL, bodies, is_float, label, node_name, static
from qcompile.ir.module_paths import module_path
from qcompile.ir.required import constant, sizes_of
from qcompile.ir.tensors import Turned, holds_infinity
from qcompile.transforms.freedom import Freedom

__all__ = ["KEPT", "Analysis", "Norm", "Rule", "Scaling", "Site", "Space", "follows", "rule"]

Rule = Callable[["Analysis", ir.Node], None]
RULES: dict[tuple[str, str], Rule] = {}


def rule(*ops: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a function as the rule of those operators."""

    def register(function: Rule) -> Rule:
        for op in ops:
            RULES[domain, op] = function
        return function

    return register


#: In an operator's metadata, the pattern by which a user keeps it as it is: its values keep their basis.
KEPT = "qcompile.kept"

#: Operators on shape tensors: a function that remembers what their entries stand for.
SIZES: dict[str, Rule] = {}


def follows(*ops: str) -> Callable[[Rule], Rule]:
    """Register a function as what follows sizes through those operators, once their rule has run."""

    def register(function: Rule) -> Rule:
        SIZES.update(dict.fromkeys(ops, function))
        return function

    return register


#: Where an operator's ``meta`` has the table that its weight shares.
_SHARED = "qcompile.shared"


@dataclass(eq=False)
class Site:
    """A linear map with a constant weight.

    Args:
        node: the operator; its name is the site's name.
        weight: the initializer.
        input: the activation that it reads, ``None`` for an embedding table.
        axis_in: the axes of the weight that are contracted (for an embedding: that is indexed).
        axis_out: the axis of the weight that is written.
        ref_in: the axis of the activation that is read, ``None`` for an embedding table.
        ref_out: the axis of the output.
    """

    node: ir.Node
    weight: ir.Value
    input: ir.Value | None
    axis_in: int
    axis_out: int
    ref_in: Ref | None
    ref_out: Ref

    @property
    def name(self) -> str:
        """The operator's name."""
        return node_name(self.node)

    @property
    def module(self) -> str | None:
        """The path of the module that it came from, such as ``model.layers.3.mlp.down_proj``, if anything says it."""
        return module_path(self.node, self.weight.name)

    @property
    def stored(self) -> ir.Value:
        """The constant that is stored for it: its weight, or a table that it shares."""
        shared = self.node.meta.get(_SHARED)
        return self.weight if shared is None else shared

    def share(self, table: ir.Value | None) -> None:
        """Let it share the constant of an embedding table, whose rows its weight has, or none."""
        self.node.meta[_SHARED] = table

    def lay_out(self, table: ir.Value) -> None:
        """Let the weight hold the rows of a table as they are now."""
        held = constant(table)
        self.weight.const_value = held if self.axis_in == 1 else Turned(held, (1, 0), name=self.weight.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return sizes_of(self.weight)

    @property
    def is_matrix(self) -> bool:
        """Whether the weight has no axes but the two: no kernel, no groups, no stack."""
        size = math.prod(self.shape) * self.node.attributes.get_int("group", 1)
        return size == self.shape[self.axis_in] * self.shape[self.axis_out]

    @property
    def nested(self) -> bool:
        """Whether the operator stands in the body of another one."""
        return self.node.graph is not self.weight.graph


@dataclass(eq=False)
class Norm:
    """A normalization over one axis, as the passes that fold its scale need it."""

    node: ir.Node
    ref_in: Ref
    ref_out: Ref
    scale: ir.Value | None
    shift: ir.Value | None
    centered: bool  # subtracts the mean (LayerNorm) rather than not (RMSNorm)


@dataclass(eq=False)
class Scaling:
    """A product with a constant vector along one axis, as the pass that folds it needs it."""

    node: ir.Node
    input: ir.Value
    ref_in: Ref
    ref_out: Ref
    scale: ir.Value


@dataclass(eq=False)
class Space:
    """One class of axes that change basis together: a leaf of the axis forest."""

    id: str
    node: AxisNode
    values: list[str] = field(default_factory=list)
    readers: list[Site] = field(default_factory=list)
    writers: list[Site] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Elements along the axis."""
        return self.node.size or 0

    @property
    def freedom(self) -> Freedom:
        """The largest group that every operator on the space commutes with."""
        return self.node.freedom

    @property
    def limits(self) -> list[Limit]:
        """The reasons why freedom was lost, in the order in which they were met."""
        return self.node.limits


class Analysis:
    """Spaces, sites and norms of one graph; read-only for the graph."""

    def __init__(self, model: ir.Model, *, join_norms: bool = True) -> None:
        self.model = model
        self.join_norms = join_norms
        self.axes = Axes()
        self.refs_of: dict[ir.Value, list[Ref] | None] = {}
        self.dims_of: dict[ir.Value, np.ndarray] = {}  # of numbers, axes and None
        self.sites: list[Site] = []
        self.norms: list[Norm] = []
        self.scalings: list[Scaling] = []
        self.infinite: list[Site] = []  # those whose weights hold infinity: no transform may meet it
        self.mixed: set[str] = set()  # the reasons of axes along which there may be infinity
        self._spaces: list[Space] | None = None

    # -- what rules use -----------------------------------------------------------------------------------

    def refs(self, value: ir.Value | None) -> list[Ref]:
        """The axes of a value of known rank: of any input, once the rule of its operator runs."""
        refs = self.refs_or_none(value)
        if refs is None:
            raise InternalError("no value" if value is None else f"the rank of '{value.name}' is not known")
        return refs

    def refs_or_none(self, value: ir.Value | None) -> list[Ref] | None:
        """The axes of a value, ``None`` if there is no value or if its rank is unknown."""
        if value is None:
            return None
        if value not in self.refs_of:
            at, self.axes.at = self.axes.at, value
            self.refs_of[value] = self._initial(value)
            self.axes.at = at
        return self.refs_of[value]

    def _initial(self, value: ir.Value) -> list[Ref] | None:
        if value.shape is None:
            return None
        if value.const_value is not None and is_float(value):
            refs = [self.axes.fresh(size) for size in sizes_of(value)]
            if holds_infinity(value.const_value):
                self.mixed.add(reason := f"'{value.name}' holds infinity")
                for ref in refs:
                    self.axes.constrain(ref, Freedom.NONE, reason)
            return refs
        what = "is not a floating-point value" if value.const_value is not None else "comes from outside"
        return [self.axes.frozen(static(dim), f"'{value.name}' {what}") for dim in value.shape]

    def set(self, value: ir.Value, refs: Sequence[Ref] | None) -> None:
        """Define the axes of an output."""
        self.refs_of[value] = None if refs is None else list(refs)

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        """A small constant's content, ``None`` if it is not constant or large."""
        if value is None or value.const_value is None or value.const_value.size > SMALL:
            return None
        return value.const_value.numpy()

    def uniform(self, value: ir.Value | None) -> bool:
        """Whether a value is a constant whose elements are all equal."""
        if value is None or value.const_value is None:
            return False
        if value.const_value.size == 1:
            return True
        array = value.const_value.numpy()
        return bool((array == array.reshape(-1)[0]).all())

    def freeze(self, values: Iterable[ir.Value | None], reason: str) -> None:
        """Take all freedom from every axis of those values."""
        for value in values:
            for ref in self.refs_or_none(value) or ():
                self.axes.constrain(ref, Freedom.NONE, reason)

    def opaque(self, node: ir.Node, reason: str) -> None:
        """The rule of last resort: nothing around this node, or within its bodies, may change basis."""
        self.freeze(node.inputs, reason)
        for body in bodies(node):
            self.freeze(body.outputs, reason)
            for inner in body.all_nodes():
                self.freeze(inner.inputs, reason)
        for output in node.outputs:
            shape = output.shape
            self.set(output, None if shape is None else [self.axes.frozen(static(dim), reason) for dim in shape])

    def free(self, ref: Ref) -> Freedom:
        """The meet of the freedoms of all leaves under an axis."""
        freedom = Freedom.GENERAL
        for leaf in self.axes.leaves(ref):
            freedom &= leaf.node.freedom
        return freedom

    def relative(self, ref: Ref, base: Ref) -> Mode:
        """How the transform of ``ref`` follows from that of ``base``, which refers to the same node."""
        mode, own = self.axes.find(ref).mode, self.axes.find(base).mode
        return Mode.PLAIN if Mode.PLAIN in (mode, own) else mode.after(own)

    # -- what passes and reports use ----------------------------------------------------------------------------

    @property
    def spaces(self) -> list[Space]:
        """One space per leaf with a static size above one, largest and most used first seen first."""
        if self._spaces is None:
            self._spaces = self._collect()
        return self._spaces

    def _collect(self) -> list[Space]:
        spaces: dict[AxisNode, Space] = {}
        for value, refs in self.refs_of.items():
            for axis, ref in enumerate(refs or ()):
                for leaf in self.axes.leaves(ref):
                    if (leaf.node.size or 0) > 1:
                        space = spaces.setdefault(leaf.node, Space(f"s{len(spaces)}", leaf.node))
                        space.values.append(f"{value.name}:{axis}")
        for site in self.sites:
            for leaf in self.axes.leaves(site.ref_in) if site.ref_in else ():
                if leaf.node in spaces:
                    spaces[leaf.node].readers.append(site)
            for leaf in self.axes.leaves(site.ref_out):
                if leaf.node in spaces:
                    spaces[leaf.node].writers.append(site)
        return list(spaces.values())

    def expression(self, ref: Ref | None) -> str | None:
        """An axis in words: ``s3``, ``s4*s5`` for a product, ``s6+s7`` for segments, ``1`` for no space."""
        if ref is None:
            return None
        names = {space.node: space.id for space in self.spaces}
        return self._expression(ref, names)

    def _expression(self, ref: Ref, names: dict[AxisNode, str]) -> str:
        root = self.axes.find(ref)
        if root.node.structure is Structure.LEAF:
            return names.get(root.node, "1")
        sign = "*" if root.node.structure is Structure.PRODUCT else "+"
        parts = [self._expression(child, names) for child in self.axes.children(root)]
        return sign.join(f"({part})" if sign == "*" and "+" in part else part for part in parts)

    def uses(self) -> dict[AxisNode, list[tuple[ir.Value, int]]]:
        """For every leaf, the (value, axis) pairs that contain it."""
        uses: dict[AxisNode, list[tuple[ir.Value, int]]] = defaultdict(list)
        for value, refs in self.refs_of.items():
            for axis, ref in enumerate(refs or ()):
                for leaf in self.axes.leaves(ref):
                    uses[leaf.node].append((value, axis))
        return uses


def run(analysis: Analysis, graph: ir.Graph) -> None:
    """Apply the rule of every node of a graph, or of the body of an operator, in order."""
    for node in graph:
        analysis.axes.at = node
        _apply(analysis, node)


def _apply(analysis: Analysis, node: ir.Node) -> None:
    found = RULES.get((node.domain, node.op_type))
    if found is None:
        analysis.opaque(node, f"{label(node)} has no commutation rule")
    elif any(v is not None and analysis.refs_or_none(v) is None for v in node.inputs):
        analysis.opaque(node, f"{label(node)} reads a value of unknown rank")
    else:
        found(analysis, node)
    if KEPT in node.metadata_props:
        analysis.freeze((*node.inputs, *node.outputs), f"{label(node)} is kept as it is")
    for output in node.outputs:
        _check_shape(analysis, output)
    if not node.domain and node.op_type in SIZES:
        SIZES[node.op_type](analysis, node)


def _check_shape(analysis: Analysis, value: ir.Value) -> None:
    """Hold a rule's result against the shape that the graph states; a contradiction means no freedom."""
    refs = analysis.refs_of.setdefault(value, None)
    if refs is None or value.shape is None:
        return
    sizes = [analysis.axes.size(ref) for ref in refs]
    known = [static(dim) for dim in value.shape]
    if len(sizes) != len(known) or any(a != b for a, b in zip(sizes, known, strict=True) if a and b):
        reason = f"'{value.name}' has shape {known} in the graph but {sizes} by its operator"
        analysis.freeze([value], reason)
        analysis.set(value, [analysis.axes.frozen(size, reason) for size in known])
