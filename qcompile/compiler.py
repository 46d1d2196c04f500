"""The whole pipeline: capture, canonicalize, fold, choose, rotate, quantize, lower, verify."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from qcompile.artifact import Artifact, atomic_folder, write_manifest
from qcompile.assignment import Assignment, Option, assign
from qcompile.calibration import Data, Statistics, collect, load_data, sensitivities
from qcompile.capture import Source, capture
from qcompile.errors import InputError
from qcompile.passes_index import load_pass
from qcompile.pipeline import Pipeline, State
from qcompile.placement import Group, Placement, groups_of, place, site_errors, total_transform
from qcompile.spaces import Analysis, Site, analyze
from qcompile.targets import Plan, Scheme, Target, backend, get_target

if TYPE_CHECKING:
    from qcompile.calibration import Progress

__all__ = ["Options", "export", "prepare", "rotate"]


@dataclass(frozen=True)
class Options:
    """What a user may ask of an export.

    Args:
        target: name of the target.
        budget: upper bounds by unit: ``bits`` (mean element bits per weight, without scales), ``bytes`` (stored).
        calibration: an ``.npz`` file or a folder of them; without it random inputs.
        formats: names of the schemes to choose among; the target's default without them.
        transforms: one of ``placement.KINDS``.
        method: one of ``quantize.METHODS``.
        seed: of everything random.
        device: where torch computes: ``cpu`` or ``cuda``.
        evaluation: an ``.npz`` file to measure the loss on.
    """

    target: str
    budget: Mapping[str, float] = field(default_factory=dict)
    calibration: str | Path | None = None
    formats: Sequence[str] = ()
    transforms: str = "auto"
    method: str = "gptq"
    seed: int = 0
    device: str = "cpu"
    evaluation: str | Path | None = None


@dataclass
class Prepared:
    """A captured model, canonical and with its norms folded, analyzed."""

    source: Source
    state: State
    analysis: Analysis

    @property
    def model(self) -> ir.Model:
        """The graph."""
        return self.state.model


def prepare(model: Any, progress: Progress | None = None, **capture_options: Any) -> Prepared:
    """Everything that comes before choices: capture, canonicalize, fold norms, analyze."""
    source = capture(model, **capture_options)
    state = State(source.model.clone())
    steps = [load_pass("canonicalize")(), load_pass("fold-norms")()]

    def tell(step: Any, _state: State, _following: Any) -> None:
        if progress is not None:
            progress(step.name, 1, 1)

    Pipeline(steps, tell).apply(state)
    return Prepared(source, state, analyze(state.model))


# -- which sites -----------------------------------------------------------------------------------------------------


def quantizable(prepared: Prepared) -> list[Site]:
    """Sites that a target can quantize; the others are declined with their reason."""
    chosen = []
    for site in prepared.analysis.sites:
        reason = _unsupported(site, prepared.analysis)
        if reason is None:
            chosen.append(site)
        else:
            prepared.state.decline(site.name, "quantizing its weight", reason)
    return chosen


def _unsupported(site: Site, analysis: Analysis) -> str | None:
    node = site.node
    if sum(other.weight is site.weight for other in analysis.sites) > 1:
        kinds = {other.node.op_type for other in analysis.sites if other.weight is site.weight}
        if len(kinds) > 1:
            return "its weight is shared with an operator of another kind"
    if node.op_type in ("MatMul", "Gemm") and node.domain == "":
        if node.inputs[1] is not site.weight:
            return "its weight is the left operand"
        if len(site.shape) != 2:
            return f"its weight has {len(site.shape)} axes: stacks of matrices are not quantized yet"
        return "its first operand is transposed" if node.attributes.get_int("transA", 0) else None
    if node.op_type == "Gather":
        return None if site.axis_in == 0 else "the table is not looked up by rows"
    if node.op_type == "Conv":
        kernel = [int(n) for n in site.shape[2:]]
        plain = all(n == 1 for n in kernel + list(node.attributes.get_ints("strides", [1])))
        plain = plain and not any(node.attributes.get_ints("pads", [0]))
        return None if plain else f"convolutions with a {'x'.join(map(str, kernel))} kernel or stride keep their weights"
    return f"{node.op_type} holds several weights in one"


def edge_sites(prepared: Prepared, sites: Sequence[Site]) -> set[str]:
    """Sites at the edges of the model: embedding tables, and what writes an output of the graph directly."""
    outputs = set(prepared.model.graph.outputs)
    return {site.name for site in sites if site.input is None or outputs & _written(site.node.outputs[0])}


def _written(value: ir.Value) -> set[ir.Value]:
    """The value and what elementwise operators with constants, casts and reshapes make of it."""
    found, queue = set(), [value]
    while queue:
        value = queue.pop()
        if value in found:
            continue
        found.add(value)
        for node, _ in value.uses():
            others = [v for v in node.inputs if v is not None and v is not value and v.const_value is None]
            if not others and node.op_type in ("Add", "Cast", "Reshape", "Mul", "Div", "Tanh", "Softmax", "Squeeze"):
                queue.extend(node.outputs)
    return found


# -- rotate ------------------------------------------------------------------------------------------------------------


@dataclass
class Rotated:
    """A float-equivalent model in its new basis."""

    prepared: Prepared
    groups: list[Group]
    placement: Placement


def rotate_prepared(
    prepared: Prepared, groups: list[Group], placement: Placement, progress: Progress | None = None
) -> Rotated:
    """Fold and insert the chosen transforms."""
    step = load_pass("rotate")(prepared.analysis, tuple(groups), placement)
    step.apply(prepared.state)
    if progress is not None:
        progress("rotate", 1, 1)
    return Rotated(prepared, groups, placement)


def rotate(
    model: Any, *, transforms: str = "hadamard", seed: int = 0, progress: Progress | None = None, **capture_options: Any
) -> Rotated:
    """Rotate a model and stop while it is still float-equivalent.

    Args:
        model: as for ``capture``.
        transforms: one of ``placement.KINDS``; ``auto`` chooses by predicted error at 4-bit weights.
        seed: of random signs.
    """
    prepared = prepare(model, progress, **capture_options)
    groups = groups_of(prepared.analysis.sites)
    scheme = Scheme.parse("int4-g32")
    placement = place(prepared.analysis, groups, lambda _: scheme, kind=transforms, seed=seed, progress=progress)
    return rotate_prepared(prepared, groups, placement, progress)


# -- export ------------------------------------------------------------------------------------------------------------


@dataclass
class Choice:
    """Schemes and transforms, and what they were predicted to do."""

    schemes: dict[str, Scheme]
    placement: Placement
    alphas: dict[str, float]
    errors: dict[str, float]
    assignment: Assignment | None
    ties: dict[str, str]


def export(
    model: Any, options: Options, folder: str | Path, *, progress: Progress | None = None, **capture_options: Any
) -> Artifact:
    """Compile a model for a target.

    Args:
        model: as for ``capture``.
        options: what is wanted.
        folder: where the artifact goes; it must not exist.
        progress: called with a step, how much of it is done, and how much there is.

    Raises:
        QCompileError: if anything about the request cannot be done; nothing is written then.
    """
    target = get_target(options.target)
    lowering = backend(target.backend)
    names = list(options.formats) or [target.default]
    schemes = [target.scheme(name) for name in names]
    _check_budget(options, schemes)
    with atomic_folder(Path(folder)) as temporary:
        prepared = prepare(model, progress, **capture_options)
        data = load_data(options.calibration, prepared.model, seed=options.seed)
        sites = quantizable(prepared)
        if not sites:
            raise InputError(f"'{prepared.source.path}' has no linear map with a constant weight that can be quantized")
        chosen, statistics, groups = choose(prepared, sites, target, schemes, options, data, progress)
        rotated = rotate_prepared(prepared, groups, chosen.placement, progress)
        from qcompile.verify import equivalence

        equal = equivalence(prepared, data, progress)
        plans = _quantize(rotated, sites, chosen, statistics, options, progress)
        from qcompile.report import build_manifest, write_report
        from qcompile.verify import check_lowering, measure

        before = prepared.model.clone()
        lowered = lowering.lower(prepared.model, plans, target, temporary)
        loaded = lowering.load(temporary)
        checked = check_lowering(before, prepared.analysis, plans, temporary, data)
        measured = measure(prepared, loaded, options.evaluation, data)
        manifest = build_manifest(rotated, sites, chosen, plans, lowered, options, target, equal, checked, measured, temporary)
        write_report(temporary, manifest)
        write_manifest(temporary, manifest)
    return Artifact.open(folder)


def _check_budget(options: Options, schemes: Sequence[Scheme]) -> None:
    for unit, bound in options.budget.items():
        if unit not in ("bits", "bytes"):
            raise InputError(f"unknown budget '{unit}': give bits=… (per weight, without scales) or bytes=…")
        if bound <= 0:
            raise InputError(f"a budget of {unit}={bound:g} leaves nothing")
    least = min(scheme.bits for scheme in schemes)
    if options.budget.get("bits", least) < least:
        raise InputError(f"a budget of {options.budget['bits']:g} bits is below the smallest format, {least:g} bits")


def choose(
    prepared: Prepared,
    sites: Sequence[Site],
    target: Target,
    schemes: Sequence[Scheme],
    options: Options,
    data: Data,
    progress: Progress | None,
) -> tuple[Choice, dict[str, Statistics], list[Group]]:
    """Choose a scheme and a transform for every site."""
    edges = edge_sites(prepared, sites)
    groups = groups_of(sites)
    tables = [site for site in sites if site.input is None]
    several = len(schemes) > 1 or bool(options.budget)
    statistics = _statistics(prepared, groups, schemes, options, data, progress)
    alphas = sensitivities(prepared.model, sites, data, seed=options.seed, progress=progress) if several else {}
    first = schemes[0]
    edge = target.scheme(target.edge)
    inner = [group for group in groups if several or not all(site.name in edges for site in group.sites)]
    placement = place(
        prepared.analysis, inner, lambda _: first, kind=options.transforms, statistics=statistics,
        alphas=alphas, seed=options.seed, progress=progress,
    )  # fmt: skip
    chosen = Choice({}, placement, alphas, {}, None, {})
    if several:
        _assign(prepared, groups, tables, schemes, options, chosen)
    else:
        for site in sites:
            chosen.schemes[site.name] = edge if site.name in edges else first
            if site.name in edges and edge.name != first.name:
                prepared.state.decline(site.name, f"the format {first.name}", f"it stands at the edge of the model and is "
                                       f"kept at {edge.name}; a budget would assign it with the others")  # fmt: skip
    _predict(prepared, groups, tables, chosen)
    return chosen, statistics, groups


def _statistics(
    prepared: Prepared, groups: Sequence[Group], schemes: Sequence[Scheme], options: Options, data: Data,
    progress: Progress | None,
) -> dict[str, Statistics]:  # fmt: skip
    """Statistics of all site inputs, unless nothing that was asked for depends on them."""
    needed = options.calibration is not None or any(scheme.activation for scheme in schemes)
    if not needed:
        return {}
    values = list(dict.fromkeys(group.value for group in groups))
    return collect(prepared.model, values, data, progress=progress)


def _assign(
    prepared: Prepared, groups: Sequence[Group], tables: Sequence[Site], schemes: Sequence[Scheme], options: Options,
    chosen: Choice,
) -> None:  # fmt: skip
    """Give every group of siblings one scheme, so that the predicted loss is least within the budgets."""
    units: list[tuple[list[Site], list[Option]]] = []
    for group in groups:
        transform = total_transform(prepared.analysis, group, chosen.placement)
        found = []
        for scheme in schemes:
            errors = site_errors(group, scheme, transform)
            loss = sum(chosen.alphas[s.name] * e for s, e in zip(group.sites, errors, strict=True))
            found.append(Option(scheme.name, loss, _cost(group.sites, scheme)))
        units.append((group.sites, found))
    for site in tables:
        from qcompile.scoring import probe, site_error

        own = probe(site, None)
        losses = [chosen.alphas[site.name] * site_error(own, Scheme(scheme.weight)) for scheme in schemes]
        found = [Option(s.name, loss, _cost([site], s)) for s, loss in zip(schemes, losses, strict=True)]
        units.append(([site], found))
    weights = sum(int(s.weight.const_value.size) for sites, _ in units for s in sites)
    budgets = {"bits": options.budget["bits"] * weights} if "bits" in options.budget else {}
    budgets |= {"bytes": options.budget["bytes"]} if "bytes" in options.budget else {}
    chosen.assignment = assign([found for _, found in units], budgets)
    by_name = {scheme.name: scheme for scheme in schemes}
    for number, ((sites, found), index) in enumerate(zip(units, chosen.assignment.choice, strict=True)):
        for site in sites:
            scheme = by_name[found[index].name]
            chosen.schemes[site.name] = Scheme(scheme.weight) if site.input is None else scheme
            chosen.ties[site.name] = f"t{number}"


def _cost(sites: Sequence[Site], scheme: Scheme) -> dict[str, float]:
    bits = stored = 0.0
    for site in sites:
        count = int(site.weight.const_value.size)
        width = site.shape[site.axis_out] if site.input is None else site.shape[site.axis_in]
        bits += count * scheme.bits
        stored += count * (scheme.weight.bits_per_weight(width) if scheme.weight else 32) / 8
    return {"bits": bits, "bytes": stored}


def _predict(prepared: Prepared, groups: Sequence[Group], tables: Sequence[Site], chosen: Choice) -> None:
    from qcompile.scoring import probe, site_error

    for group in groups:
        transform = total_transform(prepared.analysis, group, chosen.placement)
        for i, site in enumerate(group.sites):
            if i >= len(group.probes):
                group.probes.append(probe(site, None))
            chosen.errors[site.name] = site_error(group.probes[i], chosen.schemes[site.name], transform)
    for site in tables:
        chosen.errors[site.name] = site_error(probe(site, None), Scheme(chosen.schemes[site.name].weight))


def _quantize(
    rotated: Rotated, sites: Sequence[Site], chosen: Choice, statistics: Mapping[str, Statistics], options: Options,
    progress: Progress | None,
) -> list[Plan]:  # fmt: skip
    prepared = rotated.prepared
    pairs = [(g, total_transform(prepared.analysis, g, rotated.placement)) for g in rotated.groups]
    tables = [site for site in sites if site.input is None]
    step = load_pass("quantize")(
        pairs, tables, chosen.schemes, statistics, options.method, options.device, progress
    )  # fmt: skip
    step.apply(prepared.state)
    if options.method == "gptq" and not statistics:
        prepared.state.decline("*", "GPTQ", "there is no calibration data, so weights are rounded to nearest")
    return [plan for plan in prepared.state.notes["plans"] if plan.scheme.weight is not None]


def summary(schemes: Mapping[str, Scheme]) -> Counter[str]:
    """How many sites have each scheme."""
    return Counter(scheme.name for scheme in schemes.values())

