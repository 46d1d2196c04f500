"""Weights in tables: one row for each when a model is inspected; after an export their shares, and what was kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from qcompile.artifact.phrases import KEPT, PACKED, QUANTIZABLE, QUANTIZED, human_bytes
from qcompile.cli.frames import module_column, table

__all__ = ["weight_rows", "weights_table"]

#: Reasons that the closing table gives for kept weights, and names in a row.
REASONS, NAMES = 3, 3


def weights_table(found: Mapping[str, Any]) -> Any:
    """All weights of an inspection, or of the manifest of an artifact."""
    column = module_column(found["weights"])
    made = table(
        f"weights: {_shares(found['weights_summary'])}", "weight", *column, "kind", "shape", "bytes", "read by", "state"
    )
    for entry in found["weights"]:
        about = entry["format"] if entry["reason"] is None else entry["reason"]
        state = entry["status"] + (f": {about}" if about else "")
        shape, readers = "x".join(map(str, entry["shape"])) or "scalar", _few(entry["readers"]) or "nothing"
        names = map(Text, (entry["name"], *(entry["module"] or "-" for _ in column)))
        made.add_row(*names, entry["kind"], shape, f"{entry['bytes']:,}", Text(readers), Text(state))
    return made


def weight_rows(m: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The rows of the closing table: shares of bytes, then the largest weights that were kept, by reason."""
    return [("weights", _shares(m["weights_summary"])), *_kept(m["weights"])]


def _shares(summary: Mapping[str, Any]) -> str:
    total = summary["bytes"]
    states = [(state, summary[state]) for state in (QUANTIZED, QUANTIZABLE, PACKED, KEPT) if state in summary]
    said = [
        f"{own['bytes'] / max(total, 1):.1%} {_WORDS.get(state, state)} ({own['count']}, {human_bytes(own['bytes'])})"
        for state, own in states if own["count"] or state == QUANTIZED
    ]  # fmt: skip
    small = summary["small"]
    said += [f"{small['count']} small ones ({human_bytes(small['bytes'])})"] if small["count"] else []
    return f"{human_bytes(total)}: {', '.join(said)}"


_WORDS = {QUANTIZABLE: "can be quantized"}


def _kept(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        if entry["status"] == KEPT:
            groups[entry["reason"]].append(entry)
    ordered = sorted(groups.items(), key=lambda item: -_bytes(item[1]))
    rows = [f"{human_bytes(_bytes(own))} in {_named(own)}: {reason}" for reason, own in ordered[:REASONS]]
    rest = [entry for _, own in ordered[REASONS:] for entry in own]
    rows += [f"{len(rest)} more of {human_bytes(_bytes(rest))}: qcompile inspect lists them"] if rest else []
    return [("kept" if number == 0 else "", row) for number, row in enumerate(rows)]


def _named(entries: Sequence[Mapping[str, Any]]) -> str:
    largest = sorted(entries, key=lambda entry: -entry["bytes"])
    return _few([f"'{entry['name']}'" for entry in largest])


def _bytes(entries: Sequence[Mapping[str, Any]]) -> int:
    return sum(entry["bytes"] for entry in entries)


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES])
    return shown if len(names) <= NAMES else f"{shown} and {len(names) - NAMES} more"
