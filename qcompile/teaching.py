"""The learning of an export: transforms before they are placed, codes after weights were rounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from qcompile.checks.fake_quantized import rounded_for
from qcompile.checks.sites import sites_to_check
from qcompile.errors import QCompileError
from qcompile.ir.graph import node_name
from qcompile.ir.required import constant
from qcompile.ir.tensors import EAGER_BYTES, total_bytes
from qcompile.learning.codes_learned import learn_codes
from qcompile.learning.loop import Course, Lesson
from qcompile.learning.settings import Schedule, learning_of
from qcompile.learning.taught import Taught
from qcompile.learning.transforms_learned import learn_transforms
from qcompile.learning.turned import Bases
from qcompile.rounding.neighbours import adds_in_pairs, brought
from qcompile.run.executor import Executor
from qcompile.stages import Chosen, Quantized
from qcompile.statistics.evidence import errs_less
from qcompile.targets.plans import drop_plans, give_plan, planned

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["with_learned_codes", "with_learned_transforms"]

#: Rows of one gradient, about.
ROWS = 2048

#: Gradients of one pass over the data, at least: many of few sequences lead further in equal time than few of many.
PASS = 10

#: How sure held-out sequences must be that what was learned is better.
CONFIDENCE = 0.75

#: Work that is declined, by what is learned.
_WORK = {"transforms": "learning transforms", "codes": "learning codes, biases and norms"}


def with_learned_transforms(chosen: Chosen) -> Chosen:
    """The choice with transforms that are learned behind those that it has, where that was asked for and helps."""
    schedule = _schedule(chosen, "transforms")
    if schedule is None:
        return chosen
    choice, analysis = chosen.choice, chosen.prepared.analysis
    placement, options = choice.placement, chosen.request.options
    between = {name: transform for name, (transform, _) in placement.boundaries.items()}
    bases = Bases(placement.offline, placement.behind, placement.online, between)
    try:
        lesson = _lesson(chosen, analysis.model, schedule)
        learned = learn_transforms(
            analysis, choice.siblings, choice.tables, choice.schemes, bases, lesson, schedule, seed=options.seed,
            device=options.device, progress=chosen.request.progress,
        )  # fmt: skip
    except QCompileError as error:
        return _declined(chosen, "transforms", str(error))
    if learned is None:
        return _declined(chosen, "transforms", "no freedom leaves anything that gradients could move")
    taught = _taught("transforms", learned.course, learned.parameters)
    chosen = replace(chosen, taught=(*chosen.taught, taught))
    if not taught.kept:
        return _declined(chosen, "transforms", _no_better(learned.course))
    found = learned.bases
    placement = replace(placement, offline=dict(found.offline), behind=dict(found.behind), online=dict(found.online))
    return replace(chosen, choice=replace(choice, placement=placement))


def with_learned_codes(quantized: Quantized) -> Quantized:
    """The planned graph with learned codes, biases and norms, where that was asked for and helps."""
    chosen = quantized.chosen
    schedule = _schedule(chosen, "codes")
    if schedule is None:
        return quantized
    model, options = quantized.rotated.model, chosen.request.options
    reference = model.clone()
    drop_plans(reference)
    try:
        lesson = _lesson(chosen, reference, schedule)
        learned = learn_codes(
            model, rounded_for(model, chosen.request.target), lesson, schedule, seed=options.seed,
            device=options.device, progress=chosen.request.progress,
        )  # fmt: skip
    except QCompileError as error:
        _declined(chosen, "codes", str(error))
        return quantized
    if learned is None:
        _declined(chosen, "codes", "no weight was rounded")
        return quantized
    if quantized.caches:
        reason = "no gradients pass the codes of caches, which count as float while weights are learned"
        chosen.prepared.state.decline("*", "learning behind caches in codes", reason)
    taught = _taught("codes", learned.course, learned.codes, learned.changed)
    quantized = replace(quantized, taught=(*quantized.taught, taught))
    if not taught.kept:
        _declined(chosen, "codes", _no_better(learned.course))
        return quantized
    sites, bound = {site.name: site for site in chosen.sites}, chosen.request.target.neighbours
    for node, plan in planned(model):
        if (name := node_name(node)) in learned.weights:
            weight = learned.weights[name]
            if bound is not None and name in sites and adds_in_pairs(sites[name], plan.scheme):
                weight = brought(bound, weight)  # each of two may have moved by one
            give_plan(node, replace(plan, weight=weight))
    _set_vectors(model, learned.vectors)
    plans = {node_name(node): plan for node, plan in planned(model)}
    schemes = chosen.choice.schemes
    checks = sites_to_check([site for site in chosen.sites if schemes[site.name].weight is not None])
    return replace(quantized, plans=plans, checks=checks)


def _set_vectors(model: ir.Model, vectors: Mapping[str, np.ndarray]) -> None:
    for name, array in vectors.items():
        value = model.graph.initializers[name]
        dtype = constant(value).dtype.numpy()
        value.const_value = ir.tensor(array.astype(dtype), name=name)


def _schedule(chosen: Chosen, part: str) -> Schedule | None:
    """The schedule of a part, if it was asked for and the data bears it."""
    text = chosen.request.options.learn
    schedule = None if text is None else learning_of(text).parts.get(part)
    if schedule is None:
        return None
    data = chosen.prepared.seen.data
    reason = None
    if not data.held_out:
        reason = data.too_few
    elif total_bytes(chosen.prepared.model) >= EAGER_BYTES:
        reason = "the model is too large for its gradients to be kept beside it"
    elif any(scheme.static for scheme in chosen.choice.schemes.values()):
        reason = "no gradients pass static scales yet"
    if reason is not None:
        _declined(chosen, part, reason)
        return None
    return schedule


def _declined(chosen: Chosen, part: str, reason: str) -> Chosen:
    chosen.prepared.state.decline("*", _WORK[part], reason)
    return chosen


def _no_better(course: Course) -> str:
    said = f"{course.after.mean():.3g} after {course.steps} steps against {course.before.mean():.3g} before"
    return f"on {len(course.before)} sequences that nothing was fitted on, it does not clearly depart less: {said}"


def _taught(part: str, course: Course, parameters: int, changed: int | None = None) -> Taught:
    kept = course.best > 0 and errs_less(course.after, course.before, CONFIDENCE)
    before, after = float(course.before.mean()), float(course.after.mean())
    steps = course.steps, course.best, len(course.before)
    return Taught(part, parameters, *steps, before, after, kept, course.redrawn, changed)


def _lesson(chosen: Chosen, model: ir.Model, schedule: Schedule) -> Lesson:
    """The data in small batches, with the float graph that they are compared with."""
    data, device = chosen.prepared.seen.data, chosen.request.options.device
    engine = Executor(model, device=device)
    batch = schedule.batch or max(
        1, min(ROWS // _rows(engine, data.batches[0], data.sizes[0]), sum(data.sizes) // PASS)
    )
    return Lesson(data.in_batches(batch).batches, data.held_out, engine, chosen.yardstick.logits)


def _rows(engine: Callable[[Any], Mapping[str, Tensor]], batch: Mapping[str, np.ndarray], sequences: int) -> int:
    """Rows of the largest output for each sequence."""
    import torch

    with torch.no_grad():
        outputs = engine(batch)
    sizes: Sequence[int] = [x.numel() // x.shape[-1] for x in outputs.values() if x.is_floating_point() and x.dim()]
    return max(1, max(sizes, default=1) // max(sequences, 1))
