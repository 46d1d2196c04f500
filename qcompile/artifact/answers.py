"""The first screen of a report: how small, how fast, how close, each beside what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcompile.artifact.phrases import human_bytes, scientific, signed, times_smaller

__all__ = ["ON", "Answer", "Bar", "answers", "loss_bars"]

#: Operators that look rows up: a pass over the model does not read their whole weight.
LOOKUPS = ("Gather", "GatherElements", "GatherND", "EmbeddingBag")


@dataclass(frozen=True)
class Bar:
    """One of the bars that are compared.

    Args:
        name: for people.
        value: in words.
        share: its length, from 0 to 1 of the longest.
        own: whether it is that of the artifact.
    """

    name: str
    value: str
    share: float
    own: bool = False


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Args:
        question: in two words.
        answer: the one number to remember.
        of: the noun of that number.
        bars: the longest is as long as the panel.
        notes: sentences below.
    """

    question: str
    answer: str
    of: str
    bars: Sequence[Bar]
    notes: Sequence[str]


def answers(m: Mapping[str, Any]) -> list[Answer]:
    """How small, how fast and how close an artifact is.

    Args:
        m: its manifest. It has no times, for these differ from run to run.
    """
    return [_small(m), _fast(m), _close(m)]


def _bars(*pairs: tuple[str, str, float]) -> list[Bar]:
    """Bars from names, words and lengths; the last is the artifact's. Lengths below nothing are drawn as nothing."""
    top = max((value for *_, value in pairs), default=0.0)
    return [
        Bar(name, said, max(value, 0.0) / top if top > 0 else 0.0, own=(name, said, value) == pairs[-1])
        for name, said, value in pairs
    ]


def _small(m: Mapping[str, Any]) -> Answer:
    source, made = m["bytes"]["source"], m["bytes"]["artifact"]
    bars = _bars(("source", human_bytes(source), source), ("this artifact", human_bytes(made), made))
    notes = [f"{m['bits_per_weight']:.2f} bits per weight, scales included"]
    if "weights_summary" in m:
        notes.append(f"{100 * m['weights_summary']['share']:.3g} % of the bytes of constants are quantized")
    ratio, word = times_smaller(source, made).split(" ", 1)
    return Answer("How small", ratio, word, bars, notes)


# -- how fast --------------------------------------------------------------------------------------------------------


def _fast(m: Mapping[str, Any]) -> Answer:
    """The bytes of weights that one pass reads: what bounds the speed of small batches."""
    tables = {site["name"] for site in m["sites"] if site["op"] in LOOKUPS}
    read = [w for w in m.get("weights", ()) if not (w["sites"] and tables.issuperset(w["sites"]))]
    source, made = (sum(weight[key] or 0 for weight in read) for key in ("bytes", "bytes_after"))
    bars = _bars(("source", human_bytes(source), source), ("this artifact", human_bytes(made), made))
    ratio, _ = times_smaller(source, made).split(" ", 1)
    notes = ["bytes of weights that each pass reads, tables apart: they bound the speed of small batches"]
    costs = [t["cost_fraction"] or 0.0 for t in m["online_transforms"]]
    if costs:
        each = f"the arithmetic of the {len(costs)} transforms that stay is at most {100 * max(costs):.2g} %"
        notes.append(f"{each} of what each serves")
    notes.append("times differ from run to run, so no file has them: qcompile export prints them at its end")
    return Answer("How fast", ratio, "fewer bytes to read" if made <= source else "more bytes to read", bars, notes)


# -- how close -------------------------------------------------------------------------------------------------------

#: The data on which errors are measured, in words.
ON = {
    "held out": "calibration sequences that nothing was fitted on", "calibration": "the calibration data itself",
    "evaluation": "the evaluation data", "random": "random inputs, which say little",
}  # fmt: skip


def _close(m: Mapping[str, Any]) -> Answer:
    q = m["quantization"]
    on = ON.get(q.get("evaluated_on", ""), "the data")
    where = f"measured on {on}, {q['evaluated_inputs']} input{'s' if q['evaluated_inputs'] != 1 else ''}"
    loss = q["loss"]
    if {"float", "quantized", "round_to_nearest"} <= loss.keys():
        ours, plain = (loss[name] - loss["float"] for name in ("quantized", "round_to_nearest"))
        error = q.get("loss_standard_error")
        notes = [_gap(ours, plain), where + ("" if error is None else f"; ± {scientific(error)} nats")]
        bars = _bars(("plain rounding", signed(plain), plain), ("this artifact", signed(ours), ours))
        return Answer("How close", signed(ours), "nats of loss above the float model", bars, notes)
    ours, plain = q["rel_l2"], (q.get("plain") or {}).get("rel_l2")
    noun = "relative L2 between its outputs and the float model's"
    if plain is None:
        bars = _bars(("this artifact", scientific(ours), ours or 0.0))
        return Answer("How close", scientific(ours), noun, bars, ["plain rounding was not measured beside it", where])
    bars = _bars(("plain rounding", scientific(plain), plain), ("this artifact", scientific(ours), ours or 0.0))
    return Answer("How close", scientific(ours), noun, bars, [_gap(ours or 0.0, plain), where])


def _gap(ours: float, plain: float) -> str:
    """The part of plain rounding's error that is gone, in words."""
    if plain <= 0:
        return "rounding to nearest loses nothing here"
    closed = 100 * (1 - ours / plain)
    kind = "of what rounding to nearest without transforms loses"
    return f"{closed:.0f} % {kind} is gone" if closed >= 0 else f"{-closed:.0f} % more than rounding to nearest loses"


def loss_bars(q: Mapping[str, Any]) -> list[Bar]:
    """Losses above the float model, predicted and measured, of an artifact; none where it was not measured.

    Args:
        q: ``quantization`` of a manifest.
    """
    loss, predicted, error = q["loss"], q["predicted_loss_delta"], q.get("loss_standard_error")
    if not {"float", "quantized"} <= loss.keys():
        return []
    found = [("predicted", signed(predicted), predicted)] if predicted is not None else []
    if "round_to_nearest" in loss:
        plain = loss["round_to_nearest"] - loss["float"]
        found.insert(0, ("plain rounding", signed(plain), plain))
    ours = loss["quantized"] - loss["float"]
    said = signed(ours) if error is None else f"{signed(ours)} ± {scientific(error)}"
    return _bars(*found, ("this artifact", said, ours))
