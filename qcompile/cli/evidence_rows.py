"""Facts of the closing table: the basis of the errors, and the lessons that were not learned from data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from qcompile.artifact.phrases import scientific
from qcompile.notes import AS_ON_ENGINE, FITTED_TRANSFORM, FLOAT_ON_ENGINE, LEARNING, ON_ENGINE, TRANSFORMS
from qcompile.rounding.methods import TITLES

__all__ = ["contest_rows", "engine_rows", "evaluated_on", "learned_rows", "unlearned_rows"]

#: The data that errors were measured on, as manifests call it and as people read it.
EVALUATED_ON = {
    "held out": ", on {} sequences that nothing was fitted on", "calibration": ", on the calibration rows themselves",
    "evaluation": ", on the evaluation data", "random": ", on random inputs",
}  # fmt: skip


def evaluated_on(quantization: Mapping[str, Any]) -> str:
    """The data behind an error, to be put after it; nothing for artifacts of older versions, which do not say."""
    return EVALUATED_ON.get(quantization.get("evaluated_on", ""), "").format(quantization["evaluated_inputs"])


def engine_rows(m: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows on the engine, on which the errors are measured; none for artifacts of older versions."""
    rows, apart = [], m.get("engine")
    if apart is not None:
        error, explained = scientific(apart["rel_l2"]), scientific(apart["explained"])
        inputs = f"{apart['inputs']} input{'s' * (apart['inputs'] != 1)}"
        said = f"relative L2 {error}, on {inputs} (another order of sums explains {explained})"
        rows.append(("artifact vs. engine", said))
    entries = [e for e in m["declined"] if e["what"] in (ON_ENGINE, FLOAT_ON_ENGINE, AS_ON_ENGINE)]
    return rows + [(f"not {e['what']}", f"warning: {e['reason']}") for e in entries]


def contest_rows(m: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A row on the choice beside simpler ones; none where it was not tried."""
    found = m.get("contest")
    if found is None:
        return []
    own = scientific(found["divergences"][found["kept"]])
    others = [
        f"{name} {scientific(found['divergences'][name])} ({found['apart'][name]:+.1f})" for name in found["apart"]
    ]
    said = f"divergence {own} of what was {'chosen' if found['kept'] == 'chosen' else 'kept: ' + found['kept']}"
    rest = f"; {', '.join(others)}" if others else ""
    return [("tried before rounding", f"{said}{rest} (in errors of the difference, {found['sequences']} sequences)")]


def unlearned_rows(m: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows on the lessons that were not learned from calibration data; none where no data was given."""
    if m["options"]["calibration"] is None:
        return []
    entries = [entry for entry in m["declined"] if entry["what"] in {*TITLES, FITTED_TRANSFORM, LEARNING, TRANSFORMS}]
    everywhere = [entry for entry in entries if entry["site"] == "*"]
    rows = [("not learned", f"warning: {entry['what']}: {entry['reason']}") for entry in everywhere]
    counts = Counter(entry["what"] for entry in entries if entry["site"] != "*")
    if counts:
        said = ", ".join(f"{count} x {what}" for what, count in counts.items())
        rows.append(("not learned", f"{said}: held-out data does not bear it there (the report says why)"))
    return rows


def learned_rows(m: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The departure on held-out sequences before and after learning along gradients, part by part."""
    return [
        (
            f"learned {own['part']}",
            f"{own['before']:.3g} → {own['after']:.3g} on {own['sequences']} held-out sequences, step {own['best']} of "
            + f"{own['steps']}"
            + ("" if own["kept"] else "; not taken"),
        )
        for own in m.get("learned") or ()
    ]
