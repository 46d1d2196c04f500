"""The whole pipeline: prepare, choose, rotate, quantize, lower, verify, report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.analysis.siblings import Group, groups_of
from qcompile.analysis.spaces import Site
from qcompile.artifact.artifact import Artifact, atomic_folder, write_manifest
from qcompile.artifact.entries import number
from qcompile.checks.equivalence import Equivalence, begin_equivalence, begin_source, by_position, settle
from qcompile.checks.losses import Run, measure, quantized_loss
from qcompile.checks.runtimes import compare_sites, linear_plans, tapped
from qcompile.checks.sites import CHECKED_SITES, Checked, Sampled, check_lowering, sites_to_check
from qcompile.choice.placement import Placement, place, total_transform
from qcompile.choice.selection import Choice, Options, check_options, choose
from qcompile.errors import InputError, MissingExtraError
from qcompile.ir.capture import begin_capture, capture
from qcompile.passes.index import load_pass
from qcompile.passes.pipeline import State
from qcompile.preparation import Prepared, prepare, quantizable
from qcompile.run.data import Data, accepted, load_data
from qcompile.run.session import compare
from qcompile.statistics.calibration import Statistics
from qcompile.targets.registry import Backend, Plan, Scheme, Target, backend, get_target, runtime_of
from qcompile.targets.split_stacks import unroll
from qcompile.threads import threads

if TYPE_CHECKING:
    import onnx_ir as ir

    from qcompile.statistics.calibration import Progress

__all__ = ["Options", "Rotated", "export", "plan", "rotate"]

#: The target that runs every format on any machine: the definition that the others are compared with.
REFERENCE = "reference"


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
    if options.tvm_target is not None:
        target = target.on_machine(options.tvm_target)
    lowering = backend(target.backends[0])
    schemes = [target.scheme(name) for name in options.formats or [target.default]]
    check_options(options, target, schemes)
    with atomic_folder(Path(folder)) as temporary:
        source = begin_capture(model, **capture_options)
        data = load_data(options.calibration, source.model, seed=options.seed)
        with threads(1) as beside:
            outputs = beside.submit(begin_source(source, data, options.seed))
            prepared = prepare(source, progress)
        data, prepared.outputs = outputs.result()
        held_out = None if options.evaluation is None else load_data(options.evaluation, prepared.model)
        sites = quantizable(prepared, target)
        if not sites:
            raise InputError(f"'{prepared.source.path}' has no linear map with a constant weight that can be quantized")
        chosen, statistics, groups = choose(prepared, sites, target, schemes, options, data, progress)
        job = _Job(prepared, sites, groups, chosen, target, lowering, progress)
        plain = None if held_out is None else job.plain_loss(held_out)
        rotated = rotate_prepared(prepared, groups, chosen.placement, progress)
        quantized = [site.name for site in sites if chosen.schemes[site.name].weight is not None]
        checks = sites_to_check(prepared.model, quantized)
        taps = {name: None for site in checks for name in site.reads if name not in data.batches[0]}
        begin = partial(begin_equivalence, prepared, data, progress, list(taps))
        quantize = partial(_quantize, rotated, sites, chosen, statistics, data, options, progress)
        equal, plans = (begin()(), quantize()) if options.method == "gptq" else _beside(begin, quantize)
        equal = settle(prepared, data, equal)
        _finish(rotated, job, plans, options, temporary, data, held_out, plain, equal, checks)
    return Artifact.open(folder)


def plan(model: Any, options: Options) -> tuple[ir.Model, list[Plan]]:
    """What an export would lower, for comparisons of backends: the rewritten graph and the plans of its sites.

    Args: as for ``export``, whose checks are left out.
    """
    target = get_target(options.target)
    schemes = [target.scheme(name) for name in options.formats or [target.default]]
    source = capture(model)
    data, prepared = load_data(options.calibration, source.model, seed=options.seed), prepare(source)
    sites = quantizable(prepared, target)
    chosen, statistics, groups = choose(prepared, sites, target, schemes, options, data, None)
    rotated = rotate_prepared(prepared, groups, chosen.placement)
    return prepared.model, _quantize(rotated, sites, chosen, statistics, data, options, None)


def _beside(
    begin: Callable[[], Callable[[], Equivalence]], quantize: Callable[[], list[Plan]]
) -> tuple[Equivalence, list[Plan]]:
    """Both at a time: rounding does not fill the cores, as GPTQ does."""
    with threads(1) as beside:
        equal, plans = beside.submit(begin()), quantize()
    return equal.result(), plans


@dataclass
class _Job:
    """What the steps of one export share."""

    prepared: Prepared
    sites: Sequence[Site]
    groups: Sequence[Group]
    chosen: Choice
    target: Target
    lowering: Backend
    progress: Progress | None

    def plain_loss(self, held_out: Data) -> float | None:
        """The loss of plain rounding to nearest without transforms: what the work is measured against.

        Sites that got the target's default scheme get the scheme that the target names for this, the others theirs.
        """
        state = State(self.prepared.model.clone())
        tables = [site for site in self.sites if site.input is None]
        pairs = [(group, None) for group in self.groups]
        plain = Scheme.parse(self.target.plain or self.target.default)
        own = {name: plain if s.name == self.target.default else s for name, s in self.chosen.schemes.items()}
        load_pass("quantize")(pairs, tables, own, {}, "rtn").apply(state)
        plans = [plan for plan in state.notes["plans"] if plan.scheme.weight is not None]
        measured_on = self.target if self.target.runs_here else get_target(REFERENCE)
        with lowered_to(measured_on, state.model, plans) as run:
            loss = quantized_loss(self.prepared, run, held_out)
        if self.progress is not None:
            self.progress("measuring plain rounding", 1, 1)
        return loss


@contextmanager
def lowered_to(target: Target, model: ir.Model, plans: Sequence[Plan]) -> Iterator[Run]:
    """A planned graph as a function of named inputs, in a temporary folder."""
    lowering = backend(target.backends[0])
    with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
        lowering.lower(model, plans, target, Path(folder))
        yield lowering.load(Path(folder))


def _finish(
    rotated: Rotated, job: _Job, plans: Sequence[Plan], options: Options, folder: Path, data: Data,
    held_out: Data | None, plain: float | None, equal: Equivalence, checks: Sequence[Sampled],
) -> None:  # fmt: skip
    """Lower, verify and report."""
    from qcompile.artifact.manifest import build_manifest, compile_report, write_report

    prepared, target = rotated.prepared, job.target
    before = None if target.backends == ("ort",) else prepared.model.clone()  # holds the float weights
    lowered = job.lowering.lower(prepared.model, plans, target, folder)
    runtimes = {runtime_of(target.backends[0]): {"files": sorted(lowered.files)}} | _further(job, before, plans, folder)
    own = "model.onnx" in lowered.files  # other artifacts are compared with the reference as a whole
    values = dict(data.batches[0]) | dict(equal.tapped)
    with threads(1) as beside:
        checking = beside.submit(check_lowering, checks, plans, lowered, prepared.model, values) if own else None
        beside.submit(compile_report)  # while onnxruntime loads, Python has time
        if target.runs_here:
            measured = measure(prepared, job.lowering.load(folder), held_out or data.first(1), job.progress)
        else:
            with lowered_to(get_target(REFERENCE), before.clone(), plans) as run:
                measured = measure(prepared, run, held_out or data.first(1), job.progress)
    checked = checking and checking.result()
    if plain is not None:
        measured.loss["round_to_nearest"] = plain
        if plain < (ours := measured.loss["quantized"]):
            reason = f"it loses less on the evaluation data, {plain:.4g} < {ours:.4g}: is the calibration data like it?"
            prepared.state.decline("*", "doing better than plain rounding", reason)
    if before is not None:
        _compare_runtimes(job, before, plans, folder, runtimes, data)
        checked = checked or _checked(runtimes[runtime_of(target.backends[0])])
    manifest = build_manifest(
        rotated, job.sites, job.chosen, plans, lowered, runtimes, options, target, equal, checked, measured, folder
    )
    write_report(folder, manifest)
    write_manifest(folder, manifest)


def _checked(runtime: Mapping[str, Any]) -> Checked | None:
    """The implementation error of a runtime whose artifacts cannot be looked into."""
    return Checked(runtime["sites"]["rel_l2"], runtime["sites"]["checked"]) if "sites" in runtime else None


def _further(job: _Job, model: ir.Model, plans: Sequence[Plan], folder: Path) -> dict[str, dict[str, Any]]:
    """Add the files of the target's other backends; what cannot be written for want of an extra is said."""
    found: dict[str, dict[str, Any]] = {}
    for name in job.target.backends[1:]:
        try:
            lowered = backend(name).lower(model.clone(), plans, job.target, folder)
        except MissingExtraError as error:
            found[runtime_of(name)] = {"missing": str(error)}
        else:
            found[runtime_of(name)] = {"files": sorted(lowered.files), "notes": dict(lowered.notes)}
        if job.progress is not None:
            job.progress(f"lowering to {runtime_of(name)}", 1, 1)
    return found


def _compare_runtimes(
    job: _Job, model: ir.Model, plans: Sequence[Plan], folder: Path, runtimes: Mapping[str, dict[str, Any]], data: Data
) -> None:
    """Note how far each runtime but onnxruntime is from the reference interpreter, on small random inputs.

    On the first of the data where the model takes no random inputs. As a whole, and a sample of the sites on equal
    values: where activations are quantized, that alone shows that nothing but rounding differs.
    """
    model = model.clone()
    plans = unroll(model, plans, routed=False).plans  # each matrix of a stack is a site to compare
    sample = linear_plans(model, plans, CHECKED_SITES)
    with lowered_to(get_target(REFERENCE), tapped(model, sample), plans) as run:
        try:
            small, outputs = accepted(model, load_data(None, model, batches=1), run)
        except InputError:
            small, outputs = accepted(model, data, run)
    inputs = dict(small.batches[0])
    values = inputs | outputs
    want = {value.name: values[value.name] for value in model.graph.outputs}
    for name in job.target.backends:
        entry = runtimes[runtime_of(name)]
        if name != "ort" and "missing" not in entry:
            run = backend(name).rehearse(folder)
            if run is None:
                entry["not_run"] = "compiled for another machine"
                continue
            entry["rel_l2_to_reference"] = number(compare(want, by_position(list(want), run(inputs)))[0])
            entry["sites"] = compare_sites(model, sample, values, job.target, name)
            if job.progress is not None:
                job.progress(f"checking {runtime_of(name)}", 1, 1)


def _quantize(
    rotated: Rotated, sites: Sequence[Site], chosen: Choice, statistics: Mapping[str, Statistics], data: Data,
    options: Options, progress: Progress | None,
) -> list[Plan]:  # fmt: skip
    prepared = rotated.prepared
    pairs = [(g, total_transform(prepared.analysis, g, rotated.placement)) for g in rotated.groups]
    tables = [site for site in sites if site.input is None]
    learned = {} if data.random else statistics  # what random inputs teach is worse than nothing on others
    step = load_pass("quantize")(
        pairs, tables, chosen.schemes, learned, options.method, options.device, data, progress
    )  # fmt: skip
    step.apply(prepared.state)
    if options.method == "gptq" and not learned:
        prepared.state.decline("*", "GPTQ", "there is no calibration data, so weights are rounded to nearest")
    return [plan for plan in prepared.state.notes["plans"] if plan.scheme.weight is not None]
