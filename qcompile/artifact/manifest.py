"""The manifest of an artifact, and the report that shows it to people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.artifact.alone import digests
from qcompile.artifact.artifact import REPORT
from qcompile.artifact.asked import asked_entries, budget_entry
from qcompile.artifact.byte_counts import bits_per_weight, bytes_in, stored
from qcompile.artifact.entries import (
    assignment_entry,
    contest_entry,
    count_of,
    decision_entries,
    declined_entries,
    engine_entry,
    learned_entries,
    numbers,
    obstacles,
    online_entries,
    plain_entry,
    product_entries,
    range_entry,
    site_entry,
    space_entries,
    ties,
    timing_entry,
    transform_name,
    value_entries,
    with_modules,
)
from qcompile.artifact.facts import Facts
from qcompile.artifact.pages import render_report, template
from qcompile.artifact.phrases import QUANTIZED
from qcompile.artifact.spreads import spread_entries
from qcompile.artifact.weight_entries import unsited, weight_entries, weights_summary
from qcompile.choice.placement import total_transform
from qcompile.ir.capture import Source
from qcompile.run.compare import number
from qcompile.run.sources import input_values

if TYPE_CHECKING:
    from qcompile.analysis.spaces import Site
    from qcompile.checks.sites import Checked
    from qcompile.choice.selection import Choice
    from qcompile.formats import Quantized
    from qcompile.targets.cache_plans import CachePlan
    from qcompile.targets.plans import Plan
    from qcompile.targets.registry import Lowered

__all__ = ["build_manifest", "compile_report", "write_report"]


def build_manifest(facts: Facts) -> dict[str, Any]:
    """All facts about an export as JSON, which depends on nothing but model, options and seed."""
    from qcompile import __version__

    chosen, lowered, checked, equal = facts.choice, facts.lowered, facts.checked, facts.equivalence
    return {
        "qcompile": __version__,
        "source": _source(facts.source),
        "target": facts.target.name,
        "seed": facts.options.seed,
        **asked_entries(facts.options),
        "spaces": space_entries(facts.analysis, chosen.placement.offline),
        "sites": _sites(facts),
        **_weights(facts),
        "declined": with_modules(
            facts.analysis,
            declined_entries([*facts.state.declined, *unsited(facts.weights)]) + _unrotated(facts),
        ),
        "caches": [_cache(plan) for plan in facts.caches],
        "products": product_entries(facts.products),
        "online_transforms": online_entries(chosen.siblings, chosen.placement),
        "candidates": {key: numbers(errors) for key, errors in sorted(chosen.placement.errors.items())},
        "decisions": decision_entries(chosen.placement),
        "spreads": _spreads(facts),
        "equivalence": {
            "rel_l2": number(equal.rel_l2), "max_abs": number(equal.max_abs), "checked_inputs": equal.checked_inputs,
            **({} if equal.in_double is None else {"rel_l2_in_float64": number(equal.in_double)}),
        },
        "implementation": _implementation(checked) if checked is not None and checked.sites else None,
        "quantization": _quantization(facts),
        "engine": engine_entry(facts.departure),
        "assignment": assignment_entry(chosen),
        "contest": contest_entry(chosen),
        "learned": learned_entries(facts.learned),
        "timing": timing_entry(chosen.timing, facts.options),
        "budget": budget_entry(facts.options, chosen.assignment, facts.caches),
        "bytes": {"source": facts.source.bytes, "artifact": bytes_in(facts.folder, lowered)},
        "runtimes": {name: dict(entry) for name, entry in facts.runtimes.items()},
        "bits_per_weight": number(bits_per_weight(facts.analysis, facts.plans, facts.lowered)),
        "files": _files(facts),
        "along": [file.name for file in facts.source.along],
        "inputs": value_entries(input_values(facts.analysis.model)),
        "outputs": value_entries(facts.analysis.model.graph.outputs),
        "digests": digests(facts.folder, _files(facts)),
        "notes": dict(lowered.notes),
    }  # fmt: skip


def _cache(plan: CachePlan) -> dict[str, Any]:
    """A cache, with what its bytes were, its errors, and what they are predicted to cost."""
    numbers_held = plan.heads * plan.features
    delta = None if plan.alpha is None or plan.error is None else plan.alpha * plan.error
    return plan.to_entry() | {
        "bits": number(8 * plan.bytes_per_token / numbers_held), "float_bytes_per_token": 4 * numbers_held,
        "error": number(plan.error), "candidates": numbers(plan.errors or {}), 
        "formats": {name: number(error) for name, error in (plan.formats or {}).items()},
        "alpha": number(plan.alpha), "predicted_delta": number(delta),
    }  # fmt: skip


def _files(facts: Facts) -> list[str]:
    return sorted({name for entry in facts.runtimes.values() for name in entry.get("files", ())})


def _source(source: Source) -> dict[str, Any]:
    how = {"part": source.part} if source.part is not None else {"cache": source.cache}
    return {
        "path": source.path,
        "sha256": source.sha256,
        **{key: said for key, said in how.items() if said is not None},
    }


def _implementation(checked: Checked) -> dict[str, Any]:
    return {"rel_l2": number(checked.rel_l2), "checked_sites": checked.sites}


def _sites(facts: Facts) -> list[dict[str, Any]]:
    analysis, chosen, lowered = facts.analysis, facts.choice, facts.lowered
    tied, transforms = ties(analysis.sites), _transforms(facts)
    entries = []
    for site in analysis.sites:
        entry = site_entry(analysis, site, chosen.ties.get(site.name, tied[site.name]))
        entry["transform_in"] = transforms.get(site.name, entry["transform_in"])
        entry["asked"] = chosen.wishes.said.get(site.name, [])
        entry["lowering"] = dict(lowered.sites.get(site.name, {}))
        if site.stored is not site.weight:
            entry["shares"] = site.stored.name  # the table whose packed rows it reads
        if (errors := facts.state.notes.get("held_out", {}).get(site.name)) is not None:
            entry["held_out"] = numbers(errors)
        if (found := facts.state.notes.get("ranges", {}).get(site.name)) is not None:
            entry["range"] = range_entry(found)
        entry |= _choice(site, chosen, facts.plans.get(site.name), lowered)
        if facts.checked is not None and (measured := facts.checked.errors.get(site.name)) is not None:
            entry["measured_t2"] = number(measured)
        entries.append(entry)
    return entries


def _weights(facts: Facts) -> dict[str, Any]:
    def packed(site: Site) -> tuple[str, Quantized, float] | None:
        plan = facts.plans.get(site.name)
        if plan is None or plan.scheme.weight is None:
            return None
        return plan.scheme.weight.name, plan.weight, stored(site, plan, facts.lowered) / 8

    entries = weight_entries(facts.weights, facts.state.declined, QUANTIZED, packed)
    return {"weights": entries, "weights_summary": weights_summary(facts.weights, entries, QUANTIZED)}


def _choice(site: Site, chosen: Choice, plan: Plan | None, lowered: Lowered) -> dict[str, Any]:
    """The scheme of a site and what it was predicted to do."""
    cost, t2 = chosen.curvatures.get(site.name), chosen.errors.get(site.name)
    predicted: dict[str, Any] = {"alpha": None, "t2": number(t2), "predicted_delta": None}
    if cost is not None:
        delta = chosen.losses.get(site.name)
        predicted |= {"alpha": number(cost.weight), "alpha_input": number(cost.input), "predicted_delta": number(delta)}
    weight = plan.scheme.weight if plan is not None else None
    if plan is None or weight is None:
        return predicted
    scheme = plan.scheme
    return predicted | {
        "format": weight.name,
        "activation": scheme.activation.name if scheme.activation else None,
        "bits": scheme.bits,
        "bits_per_weight": number(stored(site, plan, lowered) / max(count_of(site), 1)),
    }


def _transforms(facts: Facts) -> dict[str, dict[str, Any]]:
    """By site, what its input goes through."""
    found, placement = {}, facts.choice.placement
    for group in facts.choice.siblings:
        total = total_transform(facts.analysis, group, placement)
        online = group.name in placement.online
        for site in group.sites:
            found[site.name] = {"kind": transform_name(total), "online": online}
    return found


def _spreads(facts: Facts) -> dict[str, dict[str, Any]]:
    """How what sites read is spread, unless the data was random."""
    chosen, known = facts.choice, {} if facts.data.random else facts.choice.statistics
    return spread_entries(chosen.siblings, known, lambda own: total_transform(facts.analysis, own, chosen.placement))


def _unrotated(facts: Facts) -> list[dict[str, str]]:
    """Why sites read a plain basis: the graph forbids another, or none was predicted to help."""
    entries = obstacles(facts.analysis, facts.sites)
    blocked, transforms = {entry["site"] for entry in entries}, _transforms(facts)
    inputs = {site.name: group.name for group in facts.choice.siblings for site in group.sites}
    reason = "none of the transforms that its space allows was predicted to lower the error enough"
    chosen = facts.choice.wishes
    reason = "no transforms were asked for" if facts.options.transforms == "none" else reason
    for site in facts.sites:
        if transforms.get(site.name, {}).get("kind") != "none":
            continue
        if chosen.kinds.get(site.name) == "none":
            why = f"{' and '.join(chosen.said[site.name])} leaves its input as it is"
            entries.append({"site": site.name, "what": "rotating its input", "reason": why})
        elif site.name not in blocked:
            entries.append({"site": site.name, "what": "rotating its input", "reason": reason})
        elif inputs.get(site.name) in facts.choice.placement.errors:
            what, why = "an online transform of its input", "none was predicted to lower the error by what it costs"
            entries.append({"site": site.name, "what": what, "reason": why})
    return entries


def _quantization(facts: Facts) -> dict[str, Any]:
    sites, chosen, measured = facts.sites, facts.choice, facts.measured
    terms = [chosen.losses.get(site.name, 0.0) for site in sites if site.name in chosen.curvatures]
    loss = numbers(measured.loss)
    known = {"float", "quantized"} <= measured.loss.keys()
    return {
        "rel_l2": number(measured.rel_l2),
        "predicted_loss_delta": number(math.fsum(terms)) if terms else None,
        "measured_loss_delta": number(measured.loss["quantized"] - measured.loss["float"]) if known else None,
        "loss_standard_error": None if measured.loss_error is None else number(measured.loss_error),
        "divergence": number(measured.divergence),
        "loss": loss,
        "evaluated_inputs": measured.rows,
        "evaluated_on": _evaluated_on(facts),
        "plain": plain_entry(facts.plain),
    }


def _evaluated_on(facts: Facts) -> str:
    """The data by which the errors were measured: nothing was fitted on it, but for the last of these."""
    if facts.options.evaluation is not None:
        return "evaluation"
    return "random" if facts.data.random else "held out" if facts.data.held_out else "calibration"


# -- files -----------------------------------------------------------------------------------------------------------


def compile_report() -> None:
    """Compile the page that ``write_report`` fills, ahead of time."""
    template(REPORT)


def write_report(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``report.html`` beside the manifest: one file that needs no network."""
    (folder / REPORT).write_text(render_report(manifest), encoding="utf-8")
