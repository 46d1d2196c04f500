"""Summaries for programs: what the tables say, as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qcompile.artifact.phrases import format_name
from qcompile.run.compare import number

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from qcompile.artifact.alone import Alone
    from qcompile.artifact.artifact import Artifact
    from qcompile.checks.losses import Measured
    from qcompile.opt import Optimized
    from qcompile.recipes.recipe import Recipe
    from qcompile.stages import Rotated
    from qcompile.targets.target import Target

__all__ = [
    "alone_summary",
    "arrays_summary",
    "artifact_summary",
    "measured_summary",
    "optimization_summary",
    "recipes_summary",
    "rotation_summary",
    "targets_summary",
]

#: Parts of a manifest that grow with the model: a summary has their numbers, the manifest itself the rest.
_LONG = ("spaces", "sites", "declined", "online_transforms", "candidates", "files", "weights", "digests")


def artifact_summary(artifact: Artifact) -> dict[str, Any]:
    """The result of an export: its folder, and its manifest with numbers in place of long lists."""
    manifest = artifact.manifest
    if artifact.parts:
        parts = {name: artifact_summary(part) for name, part in artifact.parts.items()}
        return {"artifact": str(artifact.folder), **manifest, "parts": parts}
    return {
        "artifact": str(artifact.folder),
        **{key: value for key, value in manifest.items() if key not in _LONG},
        "formats": dict(Counter(format_name(site) for site in manifest["sites"])),
        "counts": {key: len(manifest[key]) for key in _LONG if key in manifest},
        "latency": artifact.latency,
        "effort": artifact.effort,
        "work": None if artifact.work is None else artifact.work.summary(),
    }


def arrays_summary(arrays: Mapping[str, np.ndarray], output: Path) -> dict[str, Any]:
    """The outputs of a run."""
    made = {name: {"shape": list(array.shape), "type": str(array.dtype)} for name, array in arrays.items()}
    return {"output": str(output), "arrays": made}


def measured_summary(measured: Measured, artifact: Artifact) -> dict[str, Any]:
    """The distance of an artifact from its source, and that in its manifest."""
    return {
        "artifact": str(artifact.folder),
        "rel_l2": number(measured.rel_l2),
        "divergence": number(measured.divergence),
        "loss": {name: number(value) for name, value in measured.loss.items()},
        "inputs": measured.rows,
        "manifest": artifact.manifest["quantization"],
    }


def alone_summary(found: Alone, artifact: Artifact) -> dict[str, Any]:
    """An artifact checked by itself."""
    return {
        "artifact": str(artifact.folder), "files_as_written": found.files, "runtimes": dict(found.runs),
        "faults": list(found.faults),
    }  # fmt: skip


def rotation_summary(rotated: Rotated, output: Path) -> dict[str, Any]:
    """The result of ``qcompile rotate``."""
    placement, equal = rotated.placement, rotated.checked
    return {
        "output": str(output),
        "rotated_spaces": len(placement.offline),
        "online_transforms": len(placement.online),
        "declined": len(rotated.prepared.state.declined),
        "equivalence": {"rel_l2": number(equal.rel_l2), "max_abs": number(equal.max_abs)},
    }


def optimization_summary(done: Optimized, output: Path) -> dict[str, Any]:
    """The work of ``opt``."""
    from qcompile.artifact.entries import declined_entries  # which needs more than artifacts do to run

    return {
        "output": str(output),
        "changed": done.changed,
        "declined": declined_entries(done.state.declined),
        "rel_l2": None if done.equivalence is None else number(done.equivalence.rel_l2),
    }


def recipes_summary(found: Iterable[Recipe], targets: Sequence[Target]) -> dict[str, Any]:
    """All recipes, with the targets that run them."""
    keys = ("paper", "does", "lacks", "parts", "options")
    return {
        "recipes": {
            recipe.name: {key: getattr(recipe, key) for key in keys}
            | {"targets": [target.name for target in targets if recipe.runs_on(target)]}
            for recipe in found
        }
    }


def targets_summary(found: Iterable[Target]) -> dict[str, Any]:
    """All targets."""
    keys = ("aliases", "schemes", "default", "edge", "summary")
    return {"targets": {target.name: {key: getattr(target, key) for key in keys} for target in found}}
