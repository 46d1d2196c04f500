"""Tables for people, made from manifests and other results."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from qcompile.artifact.phrases import format_name, human_bytes, named_losses, scientific, times_smaller
from qcompile.cli.effort_rows import effort_rows, work_rows
from qcompile.cli.evidence_rows import contest_rows, engine_rows, evaluated_on, learned_rows, unlearned_rows
from qcompile.cli.frames import facts, module_column, table
from qcompile.cli.weight_tables import weight_rows, weights_table

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from qcompile.artifact.alone import Alone
    from qcompile.artifact.artifact import Artifact
    from qcompile.checks.losses import Measured
    from qcompile.opt import Optimized
    from qcompile.passes.hooks import Timed
    from qcompile.stages import Rotated

__all__ = [
    "arrays_table",
    "artifact_tables",
    "inputs_table",
    "inspection_tables",
    "measured_table",
    "optimization_tables",
    "rotation_table",
    "times_table",
]

# -- export ----------------------------------------------------------------------------------------------------------


def artifact_tables(artifact: Artifact) -> list[Any]:
    """The result of an export: sizes, formats, errors, and the path of the report."""
    if artifact.parts:
        return [table for part in artifact.parts.values() for table in artifact_tables(part)]
    m = artifact.manifest
    report = ("report", str(artifact.folder / "report.html"))
    told = [*_times(artifact), *work_rows(artifact), *effort_rows(artifact)]
    rows = [*_sizes(m), *weight_rows(m), *_choices(m), *_errors(m), *told, report]
    return [facts(str(artifact.folder), rows)]


def _sizes(m: Mapping[str, Any]) -> list[tuple[str, str]]:
    source, made = m["bytes"]["source"], m["bytes"]["artifact"]
    ratio = f"{human_bytes(source)} → {human_bytes(made)}, {times_smaller(source, made)}"
    sizes = ("size", f"{source:,} → {made:,} bytes ({ratio})")
    written = m["runtimes"].items()
    runs = ", ".join(name for name, runtime in written if "missing" not in runtime)
    lacks = [(f"{name} not written", f"warning: {r['missing']}") for name, r in written if "missing" in r]
    bits = ("bits per weight", f"{m['bits_per_weight']:.3f}, scales included")
    return [("target", m["target"]), *_recipe(m), ("runs in", runs), *lacks, sizes, bits, *_budgets(m)]


def _recipe(m: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The recipe, what it leaves out, and the options that were given in its place; nothing without one."""
    recipe = m.get("recipe")  # artifacts of earlier versions do not say it
    if recipe is None:
        return []
    own = f"; with --{', --'.join(recipe['given'])} of your own" if recipe["given"] else ""
    lacks = [("recipe lacks", f"warning: {recipe['lacks']}")] if recipe["lacks"] else []
    return [("recipe", f"{recipe['name']} ({recipe['paper']}){own}"), *lacks]


def _budgets(m: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each budget with the number that it bounds."""
    found = m.get("budget", {}).items()  # artifacts of earlier versions do not say it
    return [(f"budget of {unit}", f"{e['spent']:g} of at most {e['bound']:g}: {e['counts']}") for unit, e in found]


def _choices(m: Mapping[str, Any]) -> list[tuple[str, str]]:
    formats = Counter(format_name(site) for site in m["sites"])
    kinds = Counter(t["kind"] for t in m["online_transforms"])
    cost = max((t["cost_fraction"] or 0.0 for t in m["online_transforms"]), default=0.0)
    offline = Counter(s["transform"] for s in m["spaces"] if s["transform"] != "none")
    online = f"{_counts(kinds)} (at most {cost:.1%} of what each serves)" if kinds else "none"
    folded = ("offline transforms", _counts(offline) or "none")
    return [("sites", _counts(formats)), folded, ("online transforms", online)]


def _times(artifact: Artifact) -> list[tuple[str, str]]:
    found = artifact.latency
    if found is None:
        return []
    if "not_measured" in found:
        return [("latency", f"not measured: {found['not_measured']}")]
    own, source = found["artifact_ms"], found["source_ms"]
    ratio = f"{source / own:.2f}x faster" if own <= source else f"{own / source:.2f}x slower"
    how = f"median of {found['runs']} runs in turn, one thread, {_shapes(found['inputs'])}"
    rows = [("latency", f"source {source:.3g} ms → {own:.3g} ms, {ratio} ({how})")]
    if online := found.get("online_transforms"):
        known = "not_measured" not in online
        said = f"{online['without_ms']:.3g} ms" if known else f"not measured: {online['not_measured']}"
        rows.append(("without online transforms", said))
    return [*rows, *(("", f"warning: {text}") for text in found["warnings"])]


def _shapes(inputs: Mapping[str, Sequence[int]]) -> str:
    """Each shape with the first input that has it and the number of the others: caches are many, and alike."""
    alike: dict[tuple[int, ...], list[str]] = {}
    for name, shape in inputs.items():
        alike.setdefault(tuple(shape), []).append(name)
    said = [(names[0], f" and {len(names) - 1} more" * (len(names) > 1), shape) for shape, names in alike.items()]
    return ", ".join(f"{first}{others} {'x'.join(map(str, shape))}" for first, others, shape in said)


def _counts(counter: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in sorted(counter.items(), key=lambda i: (-i[1], i[0])))


def _errors(m: Mapping[str, Any]) -> list[tuple[str, str]]:
    q = m["quantization"]
    rows = [("rotated vs. source", f"relative L2 {scientific(m['equivalence']['rel_l2'])} (float equivalence)")]
    if "rel_l2_in_float64" in m["equivalence"]:
        rows.append(("the same in float64", f"relative L2 {scientific(m['equivalence']['rel_l2_in_float64'])}"))
    if m.get("implementation"):
        error = scientific(m["implementation"]["rel_l2"])
        rows.append(("lowered vs. oracle", f"relative L2 {error} (implementation error)"))
    for name, runtime in m["runtimes"].items():
        if "rel_l2_to_reference" in runtime:
            error = scientific(runtime["rel_l2_to_reference"])
            rows.append((f"{name} vs. reference", f"relative L2 {error} (implementation error)"))
        if "not_checked" in runtime:
            rows.append((f"{name} not checked", f"warning: its rehearsal failed: {runtime['not_checked']}"))
    rows.append(("artifact vs. source", f"relative L2 {scientific(q['rel_l2'])} (quantization error{evaluated_on(q)})"))
    rows += contest_rows(m) + learned_rows(m) + engine_rows(m) + unlearned_rows(m)
    held_out = "held-out loss" if m["options"]["evaluation"] else "loss"
    rows += [(f"{held_out}, {name}", said) for name, said in _losses(q["loss"])]
    if q["measured_loss_delta"] is not None:
        error = q["loss_standard_error"]
        said = scientific(q["measured_loss_delta"]) + ("" if error is None else f" ± {scientific(error)}")
        predicted = q["predicted_loss_delta"]
        said = said if predicted is None else f"predicted {scientific(predicted)}, measured {said}"
        rows.append(("loss above float", said))
    return rows


def _losses(losses: Mapping[str, float]) -> list[tuple[str, str]]:
    """Each loss in nats, and its distance above float."""
    base = losses.get("float")
    rows = []
    for name, value in named_losses(losses):
        above = "" if base is None or name == "float" else f" ({value - base:+.4f})"
        rows.append((name, f"{value:.4f} nats{above}"))
    return rows


# -- the other commands ----------------------------------------------------------------------------------------------


def rotation_table(rotated: Rotated, output: Path) -> Table:
    """The result of ``qcompile rotate``."""
    placement, equal = rotated.placement, rotated.checked
    sizes = Counter(f"{node.size}" for node in placement.offline)
    spaces = f"{len(placement.offline)}" + (f" (sizes: {_counts(sizes)})" if sizes else "")
    return facts(str(output), [
        ("rotated spaces", spaces),
        ("online transforms", str(len(placement.online))),
        ("declined", f"{len(rotated.prepared.state.declined)} (qcompile inspect says why)"),
        ("rotated vs. source", f"relative L2 {equal.rel_l2:.3g}, largest difference {equal.max_abs:.3g}"),
        *([] if equal.in_double is None else [("the same in float64", f"relative L2 {equal.in_double:.3g}")]),
        ("written", f"{human_bytes(output.stat().st_size)}"),
    ])  # fmt: skip


def arrays_table(arrays: Mapping[str, np.ndarray], output: Path) -> Table:
    """The outputs of a run."""
    made = table(str(output), "output", "shape", "type")
    for name, array in arrays.items():
        made.add_row(Text(name), "x".join(map(str, array.shape)) or "scalar", str(array.dtype))
    return made


def alone_table(found: Alone, stated: Mapping[str, Any]) -> Table:
    """An artifact checked by itself, because its source is not here."""
    rows = [("source", f"not here: '{stated['source']['path']}'; --against names it")]
    rows += [("files as written", f"{found.files} of {len(stated['digests'])}")]
    rows += [(f"in {name}", said) for name, said in found.runs.items()]
    rows += [("wrong", fault) for fault in found.faults]
    return facts("artifact alone", rows)


def measured_table(measured: Measured, stated: Mapping[str, Any]) -> Table:
    """The distance of an artifact from its source, beside that in its manifest, which may be of other inputs."""
    rows = [("relative L2", scientific(measured.rel_l2)), ("divergence", f"{scientific(measured.divergence)} nats")]
    rows += [(f"loss, {name}", said) for name, said in _losses(measured.loss)]
    q = stated["quantization"]
    said = f"relative L2 {scientific(q['rel_l2'])}, divergence {scientific(q['divergence'])} nats"
    rows += [("inputs", str(measured.rows)), ("manifest says", f"{said} on {q['evaluated_inputs']} inputs")]
    return facts("artifact vs. source", rows)


def optimization_tables(done: Optimized, output: Path) -> list[Table]:
    """The work of ``opt``, and what its passes left alone."""
    equal, declined = done.equivalence, [dataclasses.asdict(entry) for entry in done.state.declined]
    made = facts(str(output), [
        ("graph", "changed" if done.changed else "the same"),
        *([] if equal is None else [("rewritten vs. source", f"relative L2 {equal.rel_l2:.3g}")]),
        ("written", f"{human_bytes(output.stat().st_size)}"),
    ])  # fmt: skip
    return [made, *([_declined(declined)] if declined else [])]


def times_table(rows: Sequence[Timed]) -> Table:
    """How long each pass took, and what it did to the number of nodes."""
    made = table("passes", "pass", "changed", "seconds", "nodes before", "after")
    for row in rows:
        made.add_row(row.name, "yes" if row.changed else "no", f"{row.seconds:.3f}", str(row.before), str(row.after))
    total = sum(row.seconds for row in rows)
    made.add_row("all", "yes" if any(row.changed for row in rows) else "no", f"{total:.3f}", *_ends(rows))
    return made


def _ends(rows: Sequence[Timed]) -> tuple[str, str]:
    return str(rows[0].before), str(rows[-1].after)


# -- inspect ---------------------------------------------------------------------------------------------------------


def inspection_tables(found: Mapping[str, Any]) -> list[Table]:
    """Four tables: spaces, sites, weights and reasons. Artifacts of older versions do not list their weights."""
    weights = [weights_table(found)] if "weights" in found else []
    return [_spaces(found["spaces"]), _sites(found["sites"]), *weights, _declined(found["declined"])]


def _spaces(spaces: Sequence[Mapping[str, Any]]) -> Table:
    used = [space for space in spaces if space["readers"] or space["writers"]]
    made = table(f"spaces: {len(used)} at sites, {len(spaces) - len(used)} elsewhere",
                   "space", "size", "freedom", "transform", "sites", "limited by")  # fmt: skip
    for space in used:
        limits = "\n".join(limit["reason"] for limit in space["limited_by"]) or "nothing"
        sites = f"{len(space['writers'])} write, {len(space['readers'])} read"
        made.add_row(space["id"], str(space["size"]), space["freedom"], space["transform"], sites, Text(limits))
    return made


def _sites(sites: Sequence[Mapping[str, Any]]) -> Table:
    columns = "site", *module_column(sites), "operator", "weight", "reads", "writes", "format", "transform"
    made = table(f"sites: {len(sites)}", *columns)
    for site in sites:
        shape = "x".join(map(str, site["weight_shape"]))
        kind = site["transform_in"]["kind"] + (" (online)" if site["transform_in"]["online"] else "")
        reads, writes = site["space_in"] or "indices", site["space_out"] or "-"
        own = [site["module"] or "-" for _ in module_column(sites)]
        names = map(Text, (site["name"], *own))
        made.add_row(*names, site["op"], shape, reads, writes, format_name(site), kind)
    return made


def _declined(declined: Sequence[Mapping[str, Any]]) -> Table:
    made = table(f"left alone: {len(declined)}", "site", *module_column(declined), "what was not done", "why")
    for entry in declined:
        own = [entry["module"] or "-" for _ in module_column(declined)]
        made.add_row(*map(Text, (entry["site"], *own, entry["what"], entry["reason"])))
    return made


def inputs_table(model: ir.Model) -> Table:
    """The arrays that a graph takes; a dimension that several arrays share has one name."""
    from qcompile.run.sources import input_values, shape_of, type_of

    made = table("inputs", "name", "type", "shape")
    for value in input_values(model):
        made.add_row(Text(value.name or ""), Text(type_of(value)), Text(shape_of(value)))
    return made
