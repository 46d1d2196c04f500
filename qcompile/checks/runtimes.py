"""Whether a runtime computes what was planned: every site on the very values that the reference interpreter had.

Runtimes round sums differently, a value that rounding moves across the border of two codes changes what follows, and
a deep graph amplifies it: outputs of a model with quantized activations may differ by as much as quantization does,
though every part is right. So values are *forced*. ``sites_alone`` cuts the graph in front of every site: inputs are
equal to the bit, so activation codes must be, and results may differ by the rounding of one sum. ``between_sites``
cuts behind every site: what stands between two sites, fused with the quantization as in the artifact, starts from
equal values.

Codes are seen through sites that we add: a weight of ones and zeros picks features of the quantized input, which it
shares with the sites that read the same value. No backend knows of it.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.analysis.forms import Linear, read_site
from qcompile.checks.sites import CHECKED_SITES, spread
from qcompile.errors import InternalError
from qcompile.formats import Format, Quantized, ScaleRule, fake_quantize_rows
from qcompile.formats.static import Activation
from qcompile.ir.graph import add_initializer, append_node, tidy
from qcompile.ir.required import name_of, rank_of
from qcompile.run.compare import compare, number
from qcompile.targets.plans import Plan, give_plan, planned
from qcompile.targets.registry import backend
from qcompile.targets.target import Target

__all__ = [
    "Agreement", "Case", "agreement", "between_sites", "compare_sites", "observe", "sites_alone", "tapped",
]  # fmt: skip

#: Relatively, levels are further apart than this, and float32 reads the same code and scale as closer than this.
SAME = 1e-4

#: Features of a value whose codes an export compares.
FEATURES = 128


@dataclass(frozen=True)
class Case:
    """A graph whose values are forced.

    Args:
        model: the planned graph, its shapes fixed, with sites of ours.
        inputs: of the graph.
        results: what sites and the graph should give, by name of the output.
        codes: the values that the quantized inputs of sites should stand for, by name of the output.
    """

    model: ir.Model
    inputs: dict[str, np.ndarray]
    results: dict[str, np.ndarray]
    codes: dict[str, np.ndarray]


@dataclass(frozen=True)
class Agreement:
    """How far a runtime is from the reference on equal values.

    Args:
        rel_l2: the worst relative L2 of a result.
        results: how many were compared.
        codes: how many activation codes were.
        differing: how many of them stand for another value.
    """

    rel_l2: float
    results: int
    codes: int
    differing: int


def tapped(model: ir.Model, count: int | None = None) -> ir.Model:
    """A copy of a planned graph that also returns what its linear sites read and write, for the reference to run.

    Args:
        count: of so many of them, spread over the graph; of all without it.
    """
    model = model.clone()
    outputs, initializers = model.graph.outputs, model.graph.initializers
    for _, site in _linears(model, count):
        for value in (site.x, site.node.outputs[0]):
            if value not in outputs and value.producer() is not None and value.name not in initializers:
                outputs.append(value)
    return model


def sites_alone(
    model: ir.Model, values: Mapping[str, np.ndarray], features: int | None = None, count: int | None = None
) -> Case:
    """The linear sites of a planned graph, each on its own.

    Args:
        model: the graph before it is lowered.
        values: of the graph's inputs, and what the reference gives for ``tapped``.
        features: of how many features of each value the codes are compared; of all without it.
        count: how many sites are taken, spread over the graph; all without it.
    """
    model = model.clone()
    sites = _linears(model, count)
    results = [site.node.outputs[0] for _, site in sites]
    given = _force(model, [site.x for _, site in sites], values)
    model.graph.inputs[:] = [value for value, _ in given]
    model.graph.outputs[:] = results
    return _finish(model, sites, given, values, {}, features)


def between_sites(model: ir.Model, values: Mapping[str, np.ndarray], features: int | None = None) -> Case:
    """A planned graph in which every reader of a linear site's result gets what the reference computed.

    Args: as for ``sites_alone``.
    """
    model = model.clone()
    sites, graph = _linears(model), model.graph
    own = {name: values[name] for v in graph.inputs if (name := name_of(v)) not in graph.initializers}
    _fix(model, own)
    results = [site.node.outputs[0] for _, site in sites]
    given = _force(model, results, values)
    graph.inputs.extend(value for value, _ in given)
    graph.outputs.extend(value for value in results if value not in graph.outputs)
    return _finish(model, sites, given, values, own, features)


def compare_sites(model: ir.Model, values: Mapping[str, np.ndarray], target: Target, name: str) -> dict[str, Any]:
    """An entry of the manifest on a sample of a runtime's sites, each on its own.

    Args: as for ``sites_alone``, and the backend.
    """
    case = sites_alone(model, values, FEATURES, CHECKED_SITES)
    quick = replace(target, options={**target.options, "ahead": False})
    outputs = observe(case, quick, name)
    if outputs is None:
        raise InternalError(f"'{name}' ran the artifact, but not its sites")
    found = agreement(case, outputs)
    return {
        "checked": found.results, "rel_l2": number(found.rel_l2), "codes": found.codes,
        "differing_codes": found.differing,
    }  # fmt: skip


def observe(case: Case, target: Target, name: str) -> Mapping[str, np.ndarray] | None:
    """The outputs of a case in one backend; ``None`` if it compiles for another machine."""
    lowering = backend(name)
    with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
        lowering.lower(case.model.clone(), target, Path(folder))
        run = lowering.rehearse(Path(folder))
        return None if run is None else run(case.inputs)


def agreement(case: Case, outputs: Mapping[str, np.ndarray]) -> Agreement:
    """Compare the outputs of a case with what they should be."""
    errors = [compare({name: want}, outputs)[0] for name, want in case.results.items()]
    differing = sum(
        int((~(np.abs(outputs[name] - want) <= SAME * np.abs(want))).sum()) for name, want in case.codes.items()
    )
    return Agreement(max(errors, default=0.0), len(errors), sum(v.size for v in case.codes.values()), differing)


# -- cutting -----------------------------------------------------------------------------------------------------------


def _linears(model: ir.Model, count: int | None = None) -> list[tuple[Plan, Linear]]:
    """Linear sites with their plans, none within a body; all, or that many of them, spread over the graph.

    Those that read one value come together, wherever they stand: an even spread then takes few of them twice.
    """
    readers: dict[ir.Value, list[tuple[Plan, Linear]]] = defaultdict(list)
    for node, plan in planned(model):
        if node.graph is model.graph and isinstance(site := read_site(node), Linear):
            readers[site.x].append((plan, site))
    found = [pair for pairs in readers.values() for pair in pairs]
    return spread(found, count or len(found))


def _fix(model: ir.Model, inputs: Mapping[str, np.ndarray]) -> None:
    """Replace the names of sizes by the sizes of these inputs."""
    sizes: dict[str, int] = {}
    for value in model.graph.inputs:
        array = inputs.get(name_of(value))
        for dim, size in zip(value.shape or (), () if array is None else array.shape, strict=False):
            if not isinstance(dim, int) and dim.value is not None:
                sizes[dim.value] = size
    for value in model.graph.inputs:
        if (array := inputs.get(name_of(value))) is not None:
            value.shape = ir.Shape(array.shape)
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([_settled(dim, sizes) for dim in value.shape])


def _settled(dim: int | ir.SymbolicDim, sizes: Mapping[str, int]) -> int | ir.SymbolicDim:
    return dim if isinstance(dim, int) or dim.value is None else sizes.get(dim.value, dim)


def _force(
    model: ir.Model, wanted: Sequence[ir.Value], values: Mapping[str, np.ndarray]
) -> list[tuple[ir.Value, np.ndarray]]:
    """Let every reader of these values read a new input of the graph; returns those with their content."""
    given: list[tuple[ir.Value, np.ndarray]] = []
    for value in dict.fromkeys(wanted):
        array = values[name_of(value)]
        new = ir.Value(name=f"given_{len(given)}", type=value.type or _type_of(array), shape=ir.Shape(array.shape))
        for use in list(value.uses()):
            use.node.replace_input_with(use.idx, new)
        given.append((new, array))
    return given


def _type_of(array: np.ndarray) -> ir.TensorType:
    """The type of a value that the graph states none for, such as a result of If or Loop."""
    return ir.TensorType(ir.DataType.from_numpy(array.dtype))


def _finish(
    model: ir.Model, sites: Sequence[tuple[Plan, Linear]], given: Sequence[tuple[ir.Value, np.ndarray]],
    values: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray], features: int | None,
) -> Case:  # fmt: skip
    """The case: with a site of ours for every quantized value, and without what nothing reads."""
    results = {name: values[name] for name in map(name_of, model.graph.outputs)}
    for value in model.graph.outputs:
        value.type = value.type or _type_of(results[name_of(value)])
    codes: dict[str, np.ndarray] = {}
    seen = set()
    for plan, site in sites:
        fmt = plan.activation
        if fmt is None or (site.x, fmt) in seen:
            continue
        seen.add((site.x, fmt))
        name = f"codes_{len(codes)}"
        codes[name] = _picked(values[name_of(site.x)], site, fmt, _add_probe(model, plan, site, name, features))
    tidy(model)
    return Case(model, {**inputs, **{name_of(value): array for value, array in given}}, results, codes)


# -- codes -------------------------------------------------------------------------------------------------------------


def _add_probe(model: ir.Model, plan: Plan, site: Linear, name: str, features: int | None) -> np.ndarray:
    """Put a site beside another, in the same scheme and of the same form, that picks features; returns which."""
    size = plan.weight.shape[1]
    picked = np.unique(np.linspace(0, size - 1, min(size, features or size)).round().astype(int))
    node, left = site.node, site.node.inputs[0] is site.weight
    shape = {"Conv": (len(picked), size, *[1] * (rank_of(site.weight) - 2))}.get(
        node.op_type, (len(picked), size) if left else (size, len(picked))
    )
    weight = add_initializer(model, f"{name}_weight", np.zeros(shape, np.float32))
    kept = {"transA": node.attributes.get_int("transA", 0)} if node.op_type == "Gemm" else {}
    x = node.inputs[1] if left else node.inputs[0]
    made = append_node(node, node.op_type, [weight, x] if left else [x, weight], kept, name=name, after=True)
    made.outputs[0].type = node.outputs[0].type
    model.graph.outputs.append(made.outputs[0])
    give_plan(made, replace(plan, weight=picking(plan.weight.format, picked, size)))
    return picked


def picking(fmt: Format, features: np.ndarray, size: int) -> Quantized:
    """A weight ``[features, size]`` whose products are its input's elements at ``features``, exactly."""
    import torch

    from qcompile.formats.rounding import decode_element

    codes = torch.arange(2**fmt.element.bits).to(torch.uint8)
    levels = decode_element(codes, fmt.element)
    one, zero = (int(codes[(levels == level).nonzero()[0, 0]]) for level in (1.0, 0.0))
    group = fmt.group or size
    groups = -(-size // group)
    content = torch.full((len(features), groups * group), zero, dtype=torch.uint8)
    content[torch.arange(len(features)), torch.from_numpy(features)] = one
    zeros = torch.zeros(len(features), groups, dtype=torch.uint8) if fmt.zero_point else None
    second = fmt.tensor_scale is not None or fmt.rule is ScaleRule.FOUR_THIRDS
    scales = torch.ones(len(features), groups)
    return Quantized(fmt, (len(features), size), 1, content, scales, zeros, torch.ones(()) if second else None)


def _picked(x: np.ndarray, site: Linear, fmt: Activation, features: np.ndarray) -> np.ndarray:
    """The input as the format's definition quantizes it, at those features."""
    import torch

    x = x if site.before is None else np.transpose(x, site.before)
    rows = torch.from_numpy(np.ascontiguousarray(x)).float().reshape(-1, x.shape[-1])
    read = fake_quantize_rows(rows, fmt)[:, torch.from_numpy(features)].numpy().reshape(*x.shape[:-1], -1)
    return read if site.after is None else np.transpose(read, site.after)
