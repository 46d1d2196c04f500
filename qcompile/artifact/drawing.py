"""A graph as data for its drawing: operators with shapes, attributes, groups and spaces, and the edges between them.

Places are found by the page itself, for they depend on which groups are open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qcompile.artifact.grouping import grouped
from qcompile.ir.functions import DOMAIN
from qcompile.ir.graph import is_float
from qcompile.ir.module_paths import module_path

if TYPE_CHECKING:
    import onnx_ir as ir

    from qcompile.analysis.spaces import Analysis

__all__ = ["SpacesOf", "analyzed_spaces", "drawing", "named_spaces"]

#: Elements of an attribute that are shown.
SHOWN = 12

#: The indices of the spaces of a value among those that are shown, the last axis first.
SpacesOf = Callable[["ir.Value"], Sequence[int]]


def drawing(
    title: str, graph: ir.Graph, spaces_of: SpacesOf, found: Mapping[str, Any], modules: Mapping[str, str] | None = None
) -> dict[str, Any]:  # fmt: skip
    """Operators and edges.

    Args:
        title: for people.
        spaces_of: the spaces of each value, as indices into ``found["spaces"]``.
        found: the result of ``inspect``: its sites know modules.
        modules: by name of an operator or of its first output, its module, where the graph does not say it.

    Returns:
        ``title``; ``nodes``: ``{op, domain, name, module, path, shape, reads, gives, attributes, spaces, main, aux,
        kind}``; ``edges``: ``[from, to, value, space]``.
    """
    main = _Main(spaces_of, found["spaces"])
    known = {site["name"]: site["module"] for site in found["sites"] if site.get("module")} | dict(modules or {})
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    nodes = [_pseudo("input", value, main) for value in inputs]
    makers = {value: i for i, value in enumerate(inputs)}
    edges: list[tuple[int, int, ir.Value]] = []
    for node in graph:
        edges += [(makers[v], len(nodes), v) for v in dict.fromkeys(_reads(node)) if v in makers]
        makers |= dict.fromkeys(node.outputs, len(nodes))
        nodes.append(_operator(node, main, known))
    for value in graph.outputs:
        edges += [(makers[value], len(nodes), value)] if value in makers else []
        nodes.append(_pseudo("output", value, main))
    sources: list[list[int]] = [[] for _ in nodes]
    for a, b, _ in edges:
        sources[b].append(a)
    paths = grouped([node.get("module") for node in nodes], [node["op"] for node in nodes], sources)
    for drawn, path in zip(nodes, paths, strict=True):
        drawn["path"] = path
    return {"title": title, "nodes": nodes, "edges": [[a, b, v.name or "", main(v)] for a, b, v in edges]}


def _reads(node: ir.Node) -> Iterable[ir.Value]:
    """The values that a node reads, those within its subgraphs included."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        for graph in _graphs(attribute):
            for inner in graph.all_nodes():
                yield from (value for value in inner.inputs if value is not None)


def _graphs(attribute: Any) -> Sequence[ir.Graph]:
    import onnx_ir as ir

    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.value]
    return list(attribute.value) if attribute.type == ir.AttributeType.GRAPHS else []


# -- spaces ----------------------------------------------------------------------------------------------------------


def analyzed_spaces(analysis: Analysis, shown: Sequence[Mapping[str, Any]]) -> SpacesOf:
    """The spaces of the values of an analyzed graph."""
    places = {entry["id"]: i for i, entry in enumerate(shown)}
    index = {space.node: places[space.id] for space in analysis.spaces if space.id in places}

    def spaces_of(value: ir.Value) -> list[int]:
        found: list[int] = []
        for ref in reversed(analysis.refs_of.get(value) or ()):
            found += [index[leaf.node] for leaf in reversed(analysis.axes.leaves(ref)) if leaf.node in index]
        return list(dict.fromkeys(found))

    return spaces_of


def named_spaces(shown: Sequence[Mapping[str, Any]]) -> SpacesOf:
    """The same of a graph that was not analyzed, by the names of values that each space states, as ``x:1``."""
    found: dict[str, dict[int, int]] = {}
    for i, entry in enumerate(shown):
        for value in entry["values"]:
            name, _, axis = value.rpartition(":")
            found.setdefault(name, {})[int(axis)] = i
    return lambda value: [i for _, i in sorted(found.get(value.name or "", {}).items(), reverse=True)]


class _Main:
    """The space that a drawing shows of a value: the last that touches a site, -1 for none."""

    def __init__(self, spaces_of: SpacesOf, shown: Sequence[Mapping[str, Any]]) -> None:
        self.of = spaces_of
        self._used = {i for i, entry in enumerate(shown) if entry["readers"] or entry["writers"]}

    def __call__(self, value: ir.Value) -> int:
        found = self.of(value) if value.dtype is None or is_float(value) else []
        return next((i for i in found if i in self._used), found[0] if found else -1)


# -- operators -------------------------------------------------------------------------------------------------------


def _shape(value: ir.Value) -> str:
    return "?" if value.shape is None else "×".join(str(getattr(dim, "value", dim) or "?") for dim in value.shape)


def _said(value: ir.Value) -> list[str]:
    """A value as name, shape, and type, that of a constant marked as one."""
    kind = "" if value.dtype is None else value.dtype.name.lower()
    return [value.name or "", _shape(value), f"{kind} constant" if value.const_value is not None else kind]


def _pseudo(kind: str, value: ir.Value, main: _Main) -> dict[str, Any]:
    common = {"op": kind, "domain": "", "name": value.name or "", "shape": _shape(value), "kind": kind, "aux": False}
    said = [_said(value)]
    more = {"reads": said if kind == "output" else [], "gives": said if kind == "input" else [], "attributes": {}}
    return common | more | {"spaces": list(main.of(value)), "main": main(value)}


def _operator(node: ir.Node, main: _Main, modules: Mapping[str, str]) -> dict[str, Any]:
    out = node.outputs[0]
    inputs = [value for value in node.inputs if value is not None]
    touched = [i for value in (out, *inputs) for i in main.of(value)]
    name = node.name or out.name or ""
    module = modules.get(name) or modules.get(out.name or "")
    module = module or (None if node.domain == DOMAIN else module_path(node))  # names of ours are no paths
    return {
        "op": node.op_type,
        "domain": node.domain,
        "name": name,
        "module": module,
        "shape": _shape(out),
        "kind": "node",
        "reads": [_said(value) for value in inputs],
        "gives": [_said(value) for value in node.outputs if value.name],
        "attributes": {key: _attribute(attribute) for key, attribute in node.attributes.items()},
        "spaces": list(dict.fromkeys(touched)),
        "main": main(out),
        "aux": all(value.dtype is not None and not is_float(value) for value in node.outputs),
    }


def _attribute(attribute: Any) -> str:
    """An attribute in few words."""
    if graphs := _graphs(attribute):
        return ", ".join(f"graph of {len(graph)} operators" for graph in graphs)
    value = attribute.value
    if isinstance(value, list | tuple):
        more = f", … {len(value)} in all" if len(value) > SHOWN else ""
        return f"[{', '.join(map(str, value[:SHOWN]))}{more}]"
    if hasattr(value, "shape"):
        return f"tensor {'x'.join(map(str, value.shape)) or 'scalar'}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
