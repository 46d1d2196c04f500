"""The effort of an export in the closing table: its time, its longest steps, and its peaks of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qcompile.artifact.phrases import human_bytes

if TYPE_CHECKING:
    from qcompile.artifact.artifact import Artifact

__all__ = ["effort_rows", "work_rows"]

#: Steps that are named.
LONGEST = 3


def effort_rows(artifact: Artifact) -> list[tuple[str, str]]:
    """One row; none for an artifact that was read from its folder."""
    found = artifact.effort
    if found is None:
        return []
    steps = sorted(found["steps"].items(), key=lambda step: -step[1])[:LONGEST]
    longest = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in steps)
    places = (("host", "memory"), ("device", "device memory"))
    peaks = [f"peak {what} {human_bytes(found[place]['bytes'])}" for place, what in places if found[place]]
    return [("effort", "; ".join([f"{found['seconds']:.1f} s ({longest})", *peaks]))]


def work_rows(artifact: Artifact) -> list[tuple[str, str]]:
    """Rows on what was found in the folder of ``--work``, and on files there that could not be used or written."""
    if artifact.work is None:
        return []
    counts = artifact.work.summary()["kinds"].items()
    said = ", ".join(f"{n['reused']} of {n['reused'] + n['computed']} {kind}" for kind, n in counts)
    return [("reused from --work", said or "nothing"), *(("", f"warning: {text}") for text in artifact.work.notes)]
