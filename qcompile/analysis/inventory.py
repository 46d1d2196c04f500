"""The inventory of a model: every constant of the source, what it is, which operators read it, and which sites hold it.

Constants are counted in the graph as it came, those of bodies and of functions included, so that each byte of them is
counted once. They are followed into the prepared graph by the tensors that its constants are computed from, or, where
constant folding computed a new one, by the names of what it computed: there stand the operators that read them now.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qcompile.analysis.packed_weights import format_of, is_packed
from qcompile.analysis.spaces import Analysis, Site
from qcompile.analysis.unsited import kind_of, reason_of
from qcompile.ir.functions import DOMAIN
from qcompile.ir.graph import bodies, node_name
from qcompile.ir.required import constant
from qcompile.ir.tensors import origin

__all__ = ["Weight", "take_inventory"]

#: Constants below this many bytes are small, if no site holds them and no operator reads them as a packed weight.
SMALL_BYTES = 1 << 10

#: Vectors below this many bytes are, such as biases and the scales of norms.
SMALL_VECTOR = 1 << 18


@dataclass(frozen=True)
class Weight:
    """A constant of the source.

    Args:
        name: in the source; two bodies may use one name for two of them.
        kind: its use in words, such as ``matrix``, ``depthwise kernel``, ``table``, ``packed codes``.
        shape: as it is stored.
        dtype: as it is stored, ``float32`` for example.
        bytes: that it takes.
        readers: names of the operators of the prepared graph that read it, or what was computed from it.
        sites: the sites that hold it; more than one where it is shared, or where it was cut.
        held: bytes that the prepared graph takes for it, whose constants may have another type.
        parts: bytes of all weights that are one weight of those sites together with it.
        packed: its format if it was quantized before.
        reason: why it is no site, or why not in all places where it is read; ``None`` if sites are all that read it.
        small: whether it is summed up with others of its kind.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    held: int
    readers: tuple[str, ...]
    sites: tuple[Site, ...]
    parts: int
    packed: str | None
    reason: str | None
    small: bool


@dataclass(frozen=True)
class _Constant:
    name: str
    tensor: ir.TensorProtocol

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape.numpy())


def take_inventory(source: ir.Model, analysis: Analysis) -> list[Weight]:
    """All constants of a graph, in its order.

    Args:
        source: the graph as it came.
        analysis: of the same graph, prepared but not yet in another basis.
    """
    constants = list(_constants(source))
    trace = _Trace(source, constants)
    values = [value for value in analysis.model.graph.initializers.values() if value.const_value is not None]
    held: dict[int, list[ir.Value]] = defaultdict(list)
    parts: dict[ir.Value, int] = {}
    for value in values:
        found = trace.origins(value)
        parts[value] = sum(constants[index].tensor.nbytes for index in found)
        for index in found:
            held[index].append(value)
    sites: dict[ir.Value, list[Site]] = defaultdict(list)
    for site in analysis.sites:
        sites[site.weight].append(site)
    return [_weight(found, [_Held(v, sites[v], parts[v]) for v in held[i]]) for i, found in enumerate(constants)]


def _constants(model: ir.Model) -> Iterator[_Constant]:
    """Initializers and Constant operators, those of bodies and of functions included."""
    for graph in model.graphs():
        yield from (_Constant(n, origin(v.const_value)) for n, v in graph.initializers.items() if v.const_value)
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph.all_nodes():
            if node.op_type == "Constant" and (tensor := _held(node)) is not None:
                yield _Constant(node.outputs[0].name or node_name(node), tensor)


def _held(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor of a Constant operator; numbers and lists of them are no weights."""
    attribute = node.attributes.get("value")
    return None if attribute is None else origin(attribute.as_tensor())


# -- from the prepared graph back to the source ------------------------------------------------------------------------


class _Trace:
    """The constants of the source that others are computed from, by tensor and by name."""

    def __init__(self, source: ir.Model, constants: Sequence[_Constant]) -> None:
        self._of_tensor: dict[int, int] = {}
        for index, each in enumerate(constants):
            self._of_tensor.setdefault(id(each.tensor), index)
        self._of_name: dict[str, tuple[int, ...]] = {}
        self._found: dict[ir.Value, tuple[int, ...]] = {}
        graph = _inlined(source)
        for value in (value for body in graph.graphs() for value in body.initializers.values()):
            if value.const_value is not None:
                self._note(value, self._by_tensor(value.const_value))
        for node in graph.graph.all_nodes():
            self._follow(node)

    def origins(self, value: ir.Value) -> tuple[int, ...]:
        """Places in the list of constants."""
        assert value.const_value is not None
        tensor = origin(value.const_value)
        found = self._by_tensor(tensor)
        return found or self._of_name.get(value.name or "") or self._of_name.get(tensor.name or "", ())

    def _by_tensor(self, tensor: ir.TensorProtocol) -> tuple[int, ...]:
        index = self._of_tensor.get(id(origin(tensor)))
        return () if index is None else (index,)

    def _note(self, value: ir.Value, found: tuple[int, ...]) -> None:
        if found:
            self._found[value] = found
            self._of_name.setdefault(value.name or "", found)

    def _follow(self, node: ir.Node) -> None:
        """An operator on constants alone makes a constant of those that hold no shapes or indices."""
        if node.op_type == "Constant" and (tensor := _held(node)) is not None:
            self._note(node.outputs[0], self._by_tensor(tensor))
        given = [value for value in node.inputs if value is not None]
        if not given or bodies(node) or is_packed(node) or any(value not in self._found for value in given):
            return
        carried = [value for value in given if value is given[0] or value.dtype not in _COUNTS]
        found = tuple(dict.fromkeys(index for value in carried for index in self._found[value]))
        for made in node.outputs:
            self._note(made, found)


#: Types of shapes, axes and flags, whatever reads them besides another operand.
_COUNTS = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, None)


def _inlined(source: ir.Model) -> ir.Model:
    """The graph with functions in place, whose names are then those that they have when it is prepared."""
    if all(function.domain == DOMAIN for function in source.functions.values()):
        return source
    from onnx_ir.passes.common import InlinePass

    model = source.clone()
    InlinePass()(model)
    return model


# -- one weight --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Held:
    """A constant of the prepared graph, the sites whose weight it is, and the bytes of what it was made of."""

    value: ir.Value
    sites: Sequence[Site]
    parts: int

    @property
    def uses(self) -> list[tuple[ir.Node, int]]:
        return list(self.value.uses())

    def share(self, count: int) -> int:
        """Bytes that it takes for one of the constants that it holds, which has so many."""
        return constant(self.value).nbytes * count // max(self.parts, 1)

    @property
    def others(self) -> list[tuple[ir.Node, int]]:
        """The places where no site reads it: neither its operator, nor what looks its matrix up in a stack."""
        nodes = {site.node for site in self.sites}
        lookups = {value.producer() for node in nodes for value in node.inputs if value is not None}
        return [(node, place) for node, place in self.uses if node not in nodes and node not in lookups]


def _weight(found: _Constant, held: Sequence[_Held]) -> Weight:
    tensor, uses = found.tensor, sorted((use for one in held for use in one.uses), key=_unpacked)
    sites = tuple(dict.fromkeys(site for one in held for site in one.sites))
    others = [use for one in held for use in one.others]
    packed = next((node for node, _ in uses[:1] if is_packed(node)), None)
    output = any(one.value.is_graph_output() for one in held)
    return Weight(
        name=found.name,
        kind=kind_of(tensor, [(site.node, _place(site)) for site in sites] or uses),
        shape=found.shape,
        dtype=tensor.dtype.numpy().name,
        bytes=tensor.nbytes,
        held=sum(one.share(tensor.nbytes) for one in held),
        readers=tuple(dict.fromkeys(node_name(node) for node, _ in uses)),
        sites=sites,
        parts=max((one.parts for one in held if one.sites), default=tensor.nbytes),
        packed=None if packed is None else format_of(packed),
        reason=reason_of(others, output) if others or output or not sites else None,
        small=not sites and packed is None and _is_small(found),
    )


def _unpacked(use: tuple[ir.Node, int]) -> bool:
    """The order of uses: those as a packed weight tell most of a constant."""
    return not is_packed(use[0])


def _place(site: Site) -> int:
    """Which operand of its operator a site's weight is; the first, where it is looked up first."""
    return list(site.node.inputs).index(site.weight) if site.weight in site.node.inputs else 0


def _is_small(found: _Constant) -> bool:
    vector = sum(size > 1 for size in found.shape) < 2
    return found.tensor.nbytes < (SMALL_VECTOR if vector else SMALL_BYTES)
