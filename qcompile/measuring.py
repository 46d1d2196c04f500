"""The stage that measures an artifact, and the one that times it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from qcompile.artifact.byte_counts import bytes_in
from qcompile.artifact.further import lower_further
from qcompile.artifact.manifest import compile_report
from qcompile.checks.artifacts import compare_runtimes, implementation_error
from qcompile.checks.fake_quantized import FakeQuantized, departure, measured_on
from qcompile.checks.latency import Transformed, latency
from qcompile.checks.plain_rounding import running
from qcompile.checks.sites import check_lowering
from qcompile.run.session import Run
from qcompile.stages import Compared, Written
from qcompile.targets.cache_plans import with_float_caches
from qcompile.targets.registry import runtime_of
from qcompile.threads import threads

__all__ = ["measure", "timed_beside"]


def measure(written: Written) -> Compared | None:
    """Measure the artifact: each lowered site against the formats' definition, the whole against the float model.

    Of several processes the first has the artifact; the others, which get nothing, share the measuring of the whole.
    Meanwhile the target's other backends write their files, and are compared with the engine.
    """
    quantized, model = written.quantized, written.quantized.rotated.model
    request, prepared = quantized.chosen.request, quantized.rotated.prepared
    target, data, yardstick = request.target, prepared.seen.data, quantized.chosen.yardstick
    sample = quantized.chosen.held_out or data.unlearned
    measuring = partial(
        measured_on, lambda: FakeQuantized(written.rounded, request.options.device), partial(_lowered, written),
        yardstick, lambda scale, run: scale.measure(run, sample, request.progress),
    )  # fmt: skip
    if not request.options.group.first:
        measuring()
        return None
    values = dict(data.batches[0]) | dict(quantized.equivalence.tapped)
    own = "model.onnx" in written.done.files  # other artifacts are compared with the reference as a whole
    check = partial(check_lowering, quantized.checks, quantized.plans, written.done, model, values)
    with threads(2) as beside:
        others = beside.submit(_others, written)
        checking = beside.submit(check) if own else None
        beside.submit(compile_report)  # while onnxruntime loads, Python has time
        measured, engine = measuring()
        apart = None
        if engine is not None and target.runs_here:
            lowered = request.lowering.rehearse(written.folder)
            if lowered is not None:
                around = with_float_caches(lowered, quantized.caches)
                apart = departure(engine, around, yardstick, sample, measured.rel_l2)
    checked = None if checking is None else checking.result()
    request.tell("checking sites")
    plain = quantized.chosen.plain
    if plain is not None and plain.loss is not None:
        measured.loss["round_to_nearest"] = plain.loss
        if plain.loss < (ours := measured.loss["quantized"]):
            losses = f"{plain.loss:.4g} < {ours:.4g}"
            reason = f"it loses less on the evaluation data, {losses}: is the calibration data like it?"
            prepared.state.decline("*", "doing better than plain rounding", reason)
    runtimes = others.result()
    checked = checked or implementation_error(runtimes[runtime_of(target.backends[0])])
    return Compared(written, runtimes, measured, apart, checked)


def _others(written: Written) -> dict[str, dict[str, Any]]:
    """Write the files of the other backends, whose faults are said, and compare all runtimes with the engine."""
    request, before = written.quantized.chosen.request, written.before
    target, data = request.target, written.quantized.rotated.prepared.seen.data
    runtimes: dict[str, dict[str, Any]] = {runtime_of(target.backends[0]): {"files": sorted(written.done.files)}}
    if before is None:
        return runtimes
    for name in target.backends[1:]:
        runtimes[runtime_of(name)] = lower_further(name, before.clone(), target, written.folder)
        request.tell(f"lowering to {runtime_of(name)}")
    compare_runtimes(before, target, request.options.device, written.folder, runtimes, data, request.tell)
    return runtimes


def _lowered(written: Written) -> AbstractContextManager[Run]:
    """The artifact as a function of named inputs, or the reference where that runs elsewhere."""
    request = written.quantized.chosen.request
    if request.target.runs_here:
        return nullcontext(with_float_caches(request.lowering.load(written.folder), written.quantized.caches))
    assert written.before is not None, "the reference runs here"
    return running(written.before.clone(), request.target)


def timed_beside(compared: Compared, folder: Path) -> dict[str, Any]:
    """Time the artifact beside its source, on the first of the data."""
    chosen, size = compared.written.quantized.chosen, bytes_in(folder, compared.written.done)
    prepared, target = chosen.prepared, chosen.request.target
    batch, own = prepared.seen.data.batches[0], dict(prepared.seen.data.batches[0])
    for plan in compared.written.quantized.caches:
        own |= plan.pack(own[plan.past])
    found = latency(prepared.source, target, folder, size, batch, Transformed.of(chosen.choice), own)
    chosen.request.tell("timing")
    return found
