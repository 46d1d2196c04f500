"""The stages: capture, prepare, choose, rotate, quantize, lower, measure, write; ``export`` reads as it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import KEPT
from qcompile.artifact.artifact import Artifact, write_manifest
from qcompile.artifact.facts import Facts
from qcompile.artifact.folder import folder_of_first
from qcompile.artifact.manifest import build_manifest, write_report
from qcompile.artifact.weight_entries import unsited
from qcompile.checks import plain_rounding
from qcompile.checks.fake_quantized import rounded_for
from qcompile.checks.plain_rounding import Plain, output_errors, plain_error, rounded_plainly
from qcompile.choice import selection
from qcompile.choice.branches import Apart, alone, scheme_of
from qcompile.choice.contest import contest
from qcompile.choice.export_options import Options, check_options
from qcompile.choice.placement import Placement
from qcompile.choice.splits import SPLIT
from qcompile.choice.wishes import wishes_of
from qcompile.effort import Effort
from qcompile.errors import InputError
from qcompile.ir.blueprint import needed_blueprint
from qcompile.ir.capture import begin_capture
from qcompile.ir.fingerprint import fingerprint
from qcompile.measuring import measure, timed_beside
from qcompile.notes import LEARNING, TRANSFORMS, Progress
from qcompile.passes.pipeline import run_pass
from qcompile.passes.rotate import Rotate
from qcompile.preparation import prepare
from qcompile.quantizing import quantize, round_sites
from qcompile.rounding.methods import Gptq, Rtn, method_of
from qcompile.run.data import hold_out, load_data
from qcompile.splitting import branch_digests, split_sites, store_in_half
from qcompile.stages import Captured, Chosen, Compared, Prepared, Quantized, Request, Rotated, Written, float_model
from qcompile.targets.eligible import quantizable, refuse_operators, refuse_versions, said_of_weights
from qcompile.targets.registry import REFERENCE, backend, get_target, lowered_to
from qcompile.teaching import with_learned_codes, with_learned_transforms
from qcompile.work import Work

__all__ = ["Options", "choice_of", "export", "lowered_to", "plan", "prepare", "turn"]


def export(
    model: Any, options: Options, folder: str | Path, *, overwrite: bool = False, progress: Progress | None = None,
    **capture_options: Any,
) -> Artifact:  # fmt: skip
    """Compile a model for a target.

    Args:
        model: as for ``capture``.
        options: what is wanted.
        folder: the new folder of the artifact.
        overwrite: whether an artifact that is there is replaced.
        progress: called with a step, the part of it that is done, and the whole.

    Raises:
        QCompileError: if anything about the request cannot be done. Nothing is written then.
    """
    request = _request(options, progress)
    check_options(options, request.target, request.schemes)
    request = replace(request, work=Work(options.work, options.group))
    with options.group.together(), folder_of_first(Path(folder), overwrite, options.group) as temporary:
        captured = _capture(model, request, **capture_options)
        quantized = _learned(captured, request)
        written = _lower(quantized, temporary)
        compared = measure(written)
        if compared is not None:
            _write(compared)
    return options.group.by_first(lambda: _opened(compared, request, Path(folder)))


def _opened(compared: Compared | None, request: Request, folder: Path) -> Artifact:
    """The artifact with what no file says of its export."""
    assert compared is not None, "the first process measures"
    timed = timed_beside(compared, folder) if request.options.latency else None
    reused = None if request.options.work is None else request.work.reuse
    return replace(Artifact.open(folder), latency=timed, effort=request.progress.figures(), work=reused)


def plan(model: Any, options: Options) -> ir.Model:
    """The planned graph that an export would lower, for comparisons of backends.

    Args: as for ``export``, whose checks are left out.
    """
    request = _request(options)
    rotated = _rotate(_choose(_prepare(_capture(model, request), request), request))
    round_sites(rotated)
    return rotated.model


def choice_of(
    model: Any, options: Options, progress: Progress | None = None, **capture_options: Any
) -> selection.Choice:  # fmt: skip
    """The choice that an export would make, with nothing rotated, rounded or written.

    Args: as for ``export``.
    """
    request = _request(options, progress)
    captured = _capture(model, request, **capture_options)
    return _choose(_whole(captured, request), request).choice


# -- the stages --------------------------------------------------------------------------------------------------------


def _request(options: Options, progress: Progress | None = None) -> Request:
    """Resolve the names of what was asked for; unknown ones are refused."""
    target = get_target(options.target).in_form(options.form)
    if options.tvm_target is not None:
        target = target.on_machine(options.tvm_target)
    schemes = [scheme_of(target, name) for name in options.formats or [target.default]]
    rotates = options.transforms != "none"
    return Request(options, target, schemes, backend(target.backends[0]), Effort(progress), rotates_caches=rotates)


def _capture(model: Any, request: Request, **capture_options: Any) -> Captured:
    """Read a graph, and the data that it is to be calibrated with."""
    source = begin_capture(model, **capture_options)
    options = request.options
    if request.target.modules:
        needed_blueprint(source.model, source.path, request.target.name)
    data = load_data(options.calibration, source.model, seed=options.seed, reading=options.reading)
    request.tell("reading")
    return Captured(source, hold_out(data, source.model), options.seed, options.keep, options.device)


def _prepare(captured: Captured, request: Request) -> Prepared:
    """Prepare the graph, and compute parts of weights apart where that was asked for."""
    prepared = _whole(captured, request)
    return split_sites(prepared, request) if _splits(request) else prepared


def _splits(request: Request) -> bool:
    """Whether anything is to be computed apart: as splits, or as branches of schemes."""
    named = (*request.options.formats, *request.options.format_for.values())
    return bool(request.options.split) or any(isinstance(scheme_of(request.target, own), Apart) for own in named)


def _whole(captured: Captured, request: Request) -> Prepared:
    """Prepare the graph as the target wants it."""
    target = request.target
    return prepare(captured, request.progress, ties=target.ties, modules=target.modules, parts=target.online != "none")


def _choose(prepared: Prepared, request: Request) -> Chosen:
    """Choose a scheme and a transform for every site that the target can quantize."""
    options, state, analysis = request.options, prepared.state, prepared.analysis
    held_out = None
    if options.evaluation is not None:
        held_out = load_data(options.evaluation, prepared.model, option="--evaluation", reading=options.reading)
    refuse_operators(analysis, request.target)
    sites, declined = quantizable(analysis, request.target)
    state.declined += declined
    wishes = wishes_of(analysis.sites, request.target, options.exclude, options.format_for, options.transform_for)
    refuse_versions(prepared.model, request.target, (*request.schemes, *wishes.schemes.values()))
    sites = wishes.allowed(sites, state.decline)
    wishes.decline_inputs(sites, request.schemes, state.decline)
    if not sites:
        none = f"'{prepared.source.path}' has no linear map with a constant weight that can be quantized"
        raise InputError(none + said_of_weights([*state.declined, *unsited(prepared.weights)]))
    work = request.work.about(lambda: _computed_from(prepared, options))
    choice = selection.choose(
        analysis, sites, request.target, alone(request.schemes), options, prepared.seen.data, wishes, state.decline,
        request.progress, work,
    )  # fmt: skip
    _ = analysis.spaces  # by names of values that are there still
    request.tell("choosing formats")
    yardstick = float_model(prepared, options.device, options.group)
    choice = contest(
        analysis, choice, prepared.seen.data, yardstick.logits, options.device, state.decline, options.group
    )
    if choice.contest is not None:
        request.tell("trying choices out")
    return Chosen(prepared, request, sites, choice, yardstick, held_out, None, work)


def _beside_plain(chosen: Chosen) -> Chosen:
    """Measure plain rounding, once nothing of the choice has to be held any more: this takes most memory of all."""
    chosen.choice.forget()
    if chosen.held_out is None:
        return chosen
    prepared, request, data = chosen.prepared, chosen.request, chosen.held_out
    plain = plain_error(chosen.yardstick, prepared.model, chosen.choice, request.target, data, prepared.seen.data)
    request.tell("measuring plain rounding")
    return replace(chosen, plain=plain)


def _computed_from(prepared: Prepared, options: Options) -> list[Any]:
    """What statistics, sensitivities and rounded weights are computed from."""
    source = prepared.source
    graphs = [source.sha256, fingerprint(source.model), fingerprint(prepared.model)]
    tied = [site.name for site in prepared.analysis.sites if site.stored is not site.weight]
    beside = branch_digests(prepared)
    split = [*options.split, *options.formats, *beside] if options.split or beside else []
    return [*graphs, tied, list(options.keep), prepared.seen.data.digest(), options.device, split]


def _learned(captured: Captured, request: Request) -> Quantized:
    """Choose, rotate and round, or round plainly where all that errs more; what was asked for by name stays."""
    prepared = _prepare(captured, request)
    chosen = _beside_plain(with_learned_transforms(_choose(prepared, request)))
    options, data = request.options, prepared.seen.data
    method = method_of(options.method)
    free = options.transforms in ("auto", "none") and method in (Gptq(), Rtn()) and not data.random
    if not free or (method == Rtn() and chosen.choice.placement.plain):
        return with_learned_codes(quantize(_rotate(chosen)))
    errors = partial(output_errors, chosen.yardstick, target=request.target, data=data.unlearned)
    schemes = chosen.choice.schemes
    rounded = rounded_plainly(prepared.model, chosen.choice, schemes, options.device, data, request.target)
    plain = errors(rounded)
    request.tell("measuring plain rounding")
    chosen = replace(chosen, plain=chosen.plain or Plain.of(plain))
    quantized = with_learned_codes(quantize(_rotate(chosen)))
    ours = errors(quantized.rotated.model)
    request.tell("measuring beside plain rounding")
    if any(scheme.static for scheme in schemes.values()) and not chosen.choice.placement.plain:
        bare = with_learned_codes(_bare(captured, chosen, options.method))
        without = errors(bare.rotated.model)
        if (reason := plain_rounding.better_without(ours, without)) is not None:
            bare.rotated.prepared.state.decline("*", TRANSFORMS, reason)
            quantized, ours = bare, without
    reason = plain_rounding.better_plain(ours, plain, data)
    if reason is not None:
        quantized = _bare(captured, chosen, "rtn")
        quantized.rotated.prepared.state.decline("*", LEARNING, reason)
    return quantized


def _bare(captured: Captured, chosen: Chosen, method: str) -> Quantized:
    """The same without transforms, by a method: chosen anew, and rounded."""
    request = replace(chosen.request, options=replace(chosen.request.options, transforms="none", method=method))
    again = _choose(_prepare(captured, request), request)
    again.choice.forget()
    return quantize(_rotate(replace(again, plain=chosen.plain)))


def _rotate(chosen: Chosen) -> Rotated:
    """Fold and insert the chosen transforms."""
    choice = chosen.choice
    turn(chosen.prepared, choice.siblings, choice.placement, chosen.request.progress)
    return Rotated(chosen.prepared, choice.siblings, choice.placement, chosen)


def turn(
    prepared: Prepared, siblings: Sequence[Siblings], placement: Placement, progress: Progress | None = None
) -> None:
    """Put transforms into a prepared graph: those that meet a constant fold into it, the others stay as nodes."""
    run_pass(Rotate(prepared.analysis, tuple(siblings), placement), prepared.state)
    if progress is not None:
        progress("rotate", 1, 1)


def _lower(quantized: Quantized, folder: Path) -> Written:
    """Write the files of the target's own backend; of several processes the first does."""
    request, model = quantized.chosen.request, quantized.rotated.model
    target = request.target
    store_in_half(model)
    for node in model.graph.all_nodes():
        for mark in (KEPT, SPLIT):
            node.metadata_props.pop(mark, None)  # what was wished is the manifest's to say
    rounded = rounded_for(model, target)
    if not request.options.group.first:
        return Written(quantized, folder, None, rounded, None)
    before = None if target.backends == get_target(REFERENCE).backends else model.clone()  # holds the float weights
    lowered = request.lowering.lower(model, target.beside(quantized.rotated.prepared.source.along), folder)
    request.tell("lowering")
    return Written(quantized, folder, lowered, rounded, before)


def _write(compared: Compared) -> None:
    """Write the manifest and the report, and copy what goes along."""
    written = compared.written
    quantized, folder = written.quantized, written.folder
    prepared, chosen = quantized.rotated.prepared, quantized.chosen
    manifest = build_manifest(
        Facts(
            source=prepared.source, state=prepared.state, analysis=prepared.analysis, weights=prepared.weights,
            sites=chosen.sites, choice=chosen.choice, plans=quantized.plans, lowered=written.done,
            runtimes=compared.runtimes, options=chosen.request.options, target=chosen.request.target,
            equivalence=quantized.equivalence, measured=compared.measured, plain=chosen.plain,
            departure=compared.departure, checked=compared.checked, folder=folder, data=prepared.seen.data,
            caches=quantized.caches, products=prepared.products,
            learned=[*chosen.taught, *quantized.taught],
        )
    )  # fmt: skip
    write_report(folder, manifest)
    chosen.request.tell("writing")
    if chosen.request.options.effort:
        manifest["effort"] = chosen.request.progress.figures()
    write_manifest(folder, manifest, prepared.source.along)
