"""The files of a target's further backends: they come whole, or the manifest says why there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from qcompile.artifact.folder import undone_on_failure
from qcompile.errors import reason_of
from qcompile.targets.registry import backend
from qcompile.targets.target import Target

__all__ = ["lower_further"]


def lower_further(name: str, model: ir.Model, target: Target, folder: Path) -> dict[str, Any]:
    """Write the files of one more backend beside those that are there; returns its entry of the manifest.

    Args:
        name: of the backend.
        model: the planned graph; it may be edited.
        target: which names the backend.
        folder: of the artifact.
    """
    try:
        with undone_on_failure(folder):
            lowered = backend(name).lower(model, target, folder)
    except Exception as error:  # a bug of ours, too: it makes nothing of what is written already any worse
        return {"missing": reason_of(error)}
    return {"files": sorted(lowered.files), "notes": dict(lowered.notes)}
