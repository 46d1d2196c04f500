"""Fake quantization on the engine: places where the inputs of sites are rounded, and planned graphs made ready for it.

A site reads its input through an ``Identity`` of its own, where a hook rounds it; other readers see nothing of that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch

from qcompile.analysis.forms import Form, Lookup, Stack, read_site
from qcompile.analysis.matrices import Layout
from qcompile.formats import fake_quantize_rows
from qcompile.ir.graph import add_initializer, append_node, drop_unused, label, node_name, unique
from qcompile.ir.required import dtype_of, graph_of, name_of, sizes_of
from qcompile.run.executor import Hook
from qcompile.targets.cache_plans import CachePlan, caches_planned, drop_cache_plans
from qcompile.targets.plans import Plan, drop_plans, planned, ranged

if TYPE_CHECKING:
    from qcompile.formats import Quantized
    from qcompile.formats.static import Activation
    from qcompile.transforms import Transform

__all__ = ["Place", "Rounded", "RoundedWeight", "insert_place", "rounded_graph", "rounding"]

#: Gives the way in which a site's input is rounded as it runs, if it is.
Rounds = Callable[[ir.Node, Plan], "Activation | None"]


def rounding(fmt: Activation, axis: int, transform: Transform | None = None) -> Hook:
    """A hook that rounds a value as a runtime does, row by row, in the basis of a transform.

    Args:
        axis: where the features are.
    """

    def hook(value: torch.Tensor) -> torch.Tensor:
        rows = value.movedim(axis, -1)
        turned = rows if transform is None else transform.apply(rows)
        rounded = fake_quantize_rows(turned.reshape(-1, rows.shape[-1]), fmt).reshape(rows.shape).to(value.dtype)
        back = rounded if transform is None else transform.inverse().apply(rounded)
        return back.movedim(-1, axis)

    return hook


def insert_place(readers: Sequence[ir.Node], value: ir.Value, name: str) -> None:
    """Let nodes of one graph, in its order, read a value through an ``Identity``, whose result gets that name."""
    place = append_node(readers[0], "Identity", [value], name=name, like=value).outputs[0]
    for node in readers:
        for index, other in enumerate(node.inputs):
            if other is value:
                node.replace_input_with(index, place)


@dataclass(frozen=True)
class Place:
    """A value that sites read, all of them rounding it alike, or that an operator hands on in a static range.

    Args:
        axis: where its features are.
        activation: the way in which it is rounded, if it is.
        dtype: its type in the graph.
        sites: names of its readers, or of what writes it.
        cache: the cache that it is a part of, if any, which is rounded as that holds it.
    """

    axis: int
    activation: Activation | None
    dtype: ir.DataType
    sites: tuple[str, ...]
    cache: CachePlan | None = None

    @property
    def hook(self) -> Hook | None:
        """The function that rounds it, if it is rounded."""
        if self.cache is not None:
            return partial(_held, self.cache)
        return None if self.activation is None else rounding(self.activation, self.axis)


@dataclass(frozen=True)
class RoundedWeight:
    """A rounded weight, which reads itself on a device as float32.

    Args:
        weight: as the plan has it.
        layout: of the constant.
        nodes: names of the planned operators that have it.
    """

    weight: Quantized
    layout: Layout
    nodes: list[str]

    def __call__(self, device: torch.device) -> torch.Tensor:
        """The constant's values."""
        return self.layout.weight(self.weight.to(device).dequantize()).contiguous()


@dataclass(frozen=True)
class Rounded:
    """A float graph in which weights are those that the plans say, with a place for the input of every site.

    Args:
        model: the graph, without plans; it keeps no float weight of a site.
        places: by name of the value.
        weights: by name of the constant, what reads it on a device as float32.
        lacks: what the graph does not say of the rounding, if anything.
    """

    model: ir.Model
    places: Mapping[str, Place]
    weights: Mapping[str, RoundedWeight]
    lacks: str | None = None


def rounded_graph(model: ir.Model, activation: Rounds) -> Rounded:
    """A planned graph, which stays as it is, made ready for the engine.

    Args:
        activation: of each site.
    """
    model = model.clone()
    sites = [(node, plan, read_site(node)) for node, plan in planned(model)]
    held = [label(node) for node, plan in caches_planned(model) if _rounds(node, plan)]
    lacks = f"{held[0]} rounds what it appends to its caches itself" if held else None
    places = dict(_places(model, sites, activation)) | dict(_cache_places(model))
    for node, within in ranged(model):
        result = node.outputs[0]
        places[name_of(result)] = Place(-1, within, result.dtype or ir.DataType.FLOAT, (node_name(node),))
    made: dict[tuple[int, Layout], ir.Value] = {}  # a weight that sites share is rounded once
    weights: dict[str, RoundedWeight] = {}
    for node, plan, form in sites:
        reader = form.reader if isinstance(form, Stack) else form.node
        key = (id(plan.weight), form.layout)
        if key not in made:
            read = RoundedWeight(plan.weight, form.layout, [])
            made[key] = add_initializer(model, f"{form.weight.name}/rounded", _lazy(form.weight, read))
            weights[name_of(made[key])] = read
        weights[name_of(made[key])].nodes.append(node_name(node))
        for index, value in enumerate(reader.inputs):
            if value is form.weight:
                reader.replace_input_with(index, made[key])
    drop_plans(model)
    drop_cache_plans(model)
    drop_unused(model)
    return Rounded(model, places, weights, lacks)


_Site = tuple[ir.Node, Plan, Form]


def _places(model: ir.Model, sites: Iterable[_Site], activation: Rounds) -> Iterable[tuple[str, Place]]:
    groups: dict[tuple[ir.Graph, ir.Value, int, Activation | None], list[ir.Node]] = defaultdict(list)
    for node, plan, form in sites:
        if not isinstance(form, Lookup):
            groups[graph_of(node), form.x, form.features, activation(node, plan)].append(node)
    for (_, value, axis, fmt), readers in groups.items():
        name = unique(model, f"{name_of(value)}/read")
        insert_place(readers, value, name)
        yield name, Place(axis, fmt, value.dtype or ir.DataType.FLOAT, tuple(map(node_name, readers)))


def _cache_places(model: ir.Model) -> Iterable[tuple[str, Place]]:
    """Past and new keys or values, in front of what joins them, or all behind it where it depends on their places."""
    for node, plan in ((node, plan) for node, plan in caches_planned(model) if not plan.format.plain):
        if _rounds(node, plan):
            continue
        if plan.format.keeps:
            name = _insert_behind(model, node)
            yield name, Place(-1, None, node.outputs[0].dtype or ir.DataType.FLOAT, (node_name(node),), plan)
            continue
        for index, value in enumerate(node.inputs[:2]):
            if value is not None:
                name = unique(model, f"{name_of(value)}/held")
                place = append_node(node, "Identity", [value], name=name, like=value).outputs[0]
                node.replace_input_with(index, place)
                yield name, Place(-1, None, value.dtype or ir.DataType.FLOAT, (node_name(node),), plan)


def _rounds(node: ir.Node, plan: CachePlan) -> bool:
    """Whether an operator holds a cache, so that no value of the graph is what it rounds."""
    return plan.past not in map(name_of, filter(None, node.inputs[:2]))


def _insert_behind(model: ir.Model, node: ir.Node) -> str:
    """Put a place behind an operator, which has the name of what that made."""
    made, outputs = node.outputs[0], model.graph.outputs
    name = name_of(made)
    readers = list(made.uses())
    made.name = unique(model, f"{name}/exact")
    place = append_node(node, "Identity", [made], name=name, like=made, after=True).outputs[0]
    for reader, index in readers:
        reader.replace_input_with(index, place)
    if made in outputs:
        outputs[outputs.index(made)] = place
    return name


def _held(plan: CachePlan, value: torch.Tensor) -> torch.Tensor:
    held = plan.fake(value.detach().float().cpu().numpy())
    return torch.from_numpy(held).to(value.device, value.dtype)


def _lazy(weight: ir.Value, read: Callable[[torch.device], torch.Tensor]) -> ir.LazyTensor:
    """The rounded weight in the type of the graph, for nodes that onnxruntime runs."""
    dtype = dtype_of(weight)

    def content() -> ir.TensorProtocol:
        return ir.tensor(read(torch.device("cpu")).numpy().astype(dtype.numpy(), copy=False))

    return ir.LazyTensor(content, dtype=dtype, shape=ir.Shape(sizes_of(weight)), name=weight.name)
