"""Puts our nodes into the graph: planned sites, with siblings as one, and online transforms."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.analysis.forms import Linear, Lookup, read_site
from qcompile.backends.gpu.fusions.patterns import PRIVATE, commuted, put, sole_reader
from qcompile.backends.gpu.objects import Objects, label
from qcompile.backends.gpu.packing import Packed, pack, pack_table, pack_transform
from qcompile.errors import InternalError, TargetError
from qcompile.ir import required
from qcompile.ir.graph import add_initializer, append_node, node_name
from qcompile.ir.transform_nodes import read_transform
from qcompile.targets.plans import Plan, planned
from qcompile.targets.scheme import Scheme
from qcompile.threads import threads

__all__ = ["insert_sites", "insert_transforms"]


# ---- transforms --------------------------------------------------------------------------------------------------


def insert_transforms(model: ir.Model, objects: Objects) -> None:
    """Let online transforms, which are function nodes, become nodes that name a packed transform."""
    for node in list(model.graph.all_nodes()):
        structure = read_transform(node)
        if structure is not None:
            tensors, meta = pack_transform(structure.steps)
            name = objects.add(f"transform{structure.kind.replace('-', '')}", "Transform", tensors, meta)
            put(node, "Transform", node.inputs[:1], object=name)


# ---- sites -------------------------------------------------------------------------------------------------------


@dataclass
class _Placed:
    """A site on its way into the graph."""

    name: str
    plan: Plan
    site: Linear


def insert_sites(model: ir.Model, objects: Objects, arch: str) -> dict[str, dict[str, Any]]:
    """Every planned site becomes a node of ours, siblings with one input and scheme together.

    Returns:
        by site, what was chosen for it.

    Raises:
        TargetError: if a site or its format has no kernel.
    """
    found = [(node_name(node), plan, read_site(node)) for node, plan in planned(model)]
    notes: dict[str, dict[str, Any]] = {}
    tables: dict[ir.Value, str] = {}
    for name, plan, site in found:
        if isinstance(site, Lookup):
            notes[name] = _place_table(site, plan, objects, tables)
    linears = [_Placed(name, plan, site) for name, plan, site in found if isinstance(site, Linear)]
    groups = _siblings(linears)
    with threads(os.cpu_count() or 1) as beside:
        weights = [([placed.plan.weight for placed in group], group[0].plan.scheme) for group in groups]
        packs = [beside.submit(pack, own, scheme, arch) for own, scheme in weights]
        for group, packed in zip(groups, packs, strict=True):
            notes |= _place_linears(model, group, objects, packed.result())
    return {name: notes[name] for name, _, _ in found}


def _place_table(site: Lookup, plan: Plan, objects: Objects, tables: dict[ir.Value, str]) -> dict[str, Any]:
    if site.weight not in tables:
        name = label([required.name_of(site.weight)])
        tables[site.weight] = objects.add(name, "table", *pack_table(plan.weight))
    put(site.node, "Embedding", [site.indices], object=tables[site.weight])
    return {"kernel": "embedding"}


def _siblings(sites: Sequence[_Placed]) -> list[list[_Placed]]:
    groups: dict[tuple[Any, ...], list[_Placed]] = {}
    for placed in sites:
        site = placed.site
        alone = () if site.alpha == 1.0 and site.before is None and site.after is None else (id(site.node),)
        groups.setdefault((site.x, site.node.graph, placed.plan.scheme, *alone), []).append(placed)
    among: dict[int, set[tuple[int, ...]]] = defaultdict(set)  # by weight, those that it stands together with
    for group in groups.values():
        together = tuple(id(placed.plan.weight) for placed in group)
        for weight in together:
            among[weight].add(together)
    apart = {weight for weight, found in among.items() if len(found) > 1}  # or each company would get a copy of it
    return [part for group in groups.values() for part in _parted(group, apart)]


def _parted(group: list[_Placed], apart: set[int]) -> list[list[_Placed]]:
    """Siblings together, but for those with certain weights; in order, for the first places what they share."""
    together = [placed for placed in group if id(placed.plan.weight) not in apart]
    parts = [[placed] for placed in group if id(placed.plan.weight) in apart] + ([together] if together else [])
    order = [placed.name for placed in group]
    return sorted(parts, key=lambda part: order.index(part[0].name))


def _place_linears(
    model: ir.Model, group: list[_Placed], objects: Objects, packed: Packed
) -> dict[str, dict[str, Any]]:  # fmt: skip
    scheme: Scheme = group[0].plan.scheme
    for placed in group:  # what it reads may be the result of a site that was placed meanwhile
        placed.site = _read_linear(placed.site.node)
    tensors, meta = packed
    name = objects.add(label([required.name_of(placed.site.weight) for placed in group]), "Linear", tensors, meta)
    first, x = group[0].site.node, group[0].site.x
    if group[0].site.before is not None:
        x = _permuted(first, x, group[0].site.before)
    activation = scheme.activation
    if activation is not None:
        x = _quantized(first, x, objects.format(activation))
    for placed in group:
        _take_bias(placed)
    bias = _joined_bias(model, group, name)
    results = append_node(first, "Linear", [x, bias] if bias is not None else [x], {"object": name},
                          name=f"{first.name}/Linear", domain=PRIVATE, outputs=len(group)).outputs  # fmt: skip
    for placed, result in zip(group, results, strict=True):
        _stand_in(model, placed.site, result)
    about: dict[str, Any] = {"kernel": f"Linear ({meta['layout']}), {scheme.name}"}
    about |= {"packed_with": len(group) - 1} if len(group) > 1 else {}
    return {placed.name: dict(about) for placed in group}


def _read_linear(node: ir.Node) -> Linear:
    site = read_site(node)
    if not isinstance(site, Linear):
        raise InternalError(f"site '{node_name(node)}' is no product with a matrix any more")
    return site


def _permuted(before: ir.Node, x: ir.Value, order: tuple[int, ...]) -> ir.Value:
    node = append_node(before, "Transpose", [x], {"perm": list(order)}, name=f"{before.name}/input")
    _take_dtype(node.outputs[0], x)
    node.outputs[0].shape = None if x.shape is None else ir.Shape([x.shape[i] for i in order])
    return node.outputs[0]


def _take_dtype(value: ir.Value, other: ir.Value) -> None:
    """Give a value the type of another one's elements, where that is known."""
    if other.dtype is not None:
        value.dtype = other.dtype


def _quantized(before: ir.Node, x: ir.Value, fmt: str) -> ir.Value:
    """The quantized input, shared by every site that reads it so: siblings in other weight formats too."""
    for reader in (use.node for use in x.uses()):
        own = (reader.op_type, reader.domain, reader.graph) == ("Quantize", PRIVATE, before.graph)
        if own and reader.attributes.get_string("activation") == fmt:
            return reader.outputs[0]
    node = append_node(before, "Quantize", [x], {"activation": fmt}, name=f"{x.name}_quantized", domain=PRIVATE)
    node.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
    return node.outputs[0]


def _take_bias(placed: _Placed) -> None:
    """A vector that is added to nothing but the result becomes the site's bias."""
    site, value = placed.site, placed.site.node.outputs[0]
    add = sole_reader(value)
    if site.bias is not None or site.after is not None or site.alpha != 1.0 or add is None or add.op_type != "Add":
        return
    if add.graph is not site.node.graph:  # a body may run several times, or never
        return
    for other, constant in commuted(add):
        tensor = constant.const_value
        if other is value and tensor is not None and tuple(tensor.shape) == (placed.plan.weight.shape[0],):
            site.node.outputs[0].shape, site.node.outputs[0].type = value.shape, value.type
            placed.site = replace(site, beta=1.0, bias=constant)
            ir.convenience.replace_all_uses_with(add.outputs[0], value, replace_graph_outputs=True)
            name = add.outputs[0].name
            required.graph_of(add).remove(add, safe=True)
            value.name = name
            return


def _joined_bias(model: ir.Model, group: list[_Placed], name: str) -> ir.Value | None:
    """One bias for all; none where no site has one. It is scaled here, and the result by ``alpha`` afterwards."""
    if all(placed.site.bias is None for placed in group):
        return None
    first, own = group[0].site, group[0].site.bias
    if len(group) == 1 and own is not None and first.alpha == first.beta == 1.0 and required.rank_of(own) == 1:
        return own
    parts = []
    for placed in group:
        size, bias = placed.plan.weight.shape[0], placed.site.bias
        if bias is not None and bias.const_value is None:
            raise TargetError(f"triton: site '{placed.name}' cannot be lowered: its bias is not constant")
        content = np.zeros(size, np.float32) if bias is None else required.constant(bias).numpy().astype(np.float32)
        parts.append(np.broadcast_to(content.reshape(-1) * (placed.site.beta / placed.site.alpha), (size,)))
    return add_initializer(model, f"{name}.bias", np.concatenate(parts).astype(np.float32))


def _stand_in(model: ir.Model, site: Linear, result: ir.Value) -> None:
    """Let a result of ours stand for the site's output: scaled and permuted as the operator was."""
    old = site.node.outputs[0]
    _take_dtype(result, old)
    if site.alpha != 1.0:
        factor = add_initializer(model, f"{site.node.name}.alpha", np.asarray(site.alpha, np.float32))
        result = append_node(site.node, "Mul", [result, factor], name=f"{site.node.name}/scaled").outputs[0]
        _take_dtype(result, old)
    if site.after is not None:
        order = {"perm": list(site.after)}
        result = append_node(site.node, "Transpose", [result], order, name=f"{site.node.name}/back").outputs[0]
    name, result.shape, result.type = old.name, old.shape, old.type
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    required.graph_of(site.node).remove(site.node, safe=True)
    old.name, result.name = None, name
