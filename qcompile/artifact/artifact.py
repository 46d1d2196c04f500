"""The artifact: a folder with a manifest, a report, and the target's own files."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.errors import InputError, unknown
from qcompile.targets.registry import backend, runtimes

if TYPE_CHECKING:
    import numpy as np

    from qcompile.work import Reuse

__all__ = ["Artifact", "is_artifact", "read_manifest", "write_manifest"]

MANIFEST, REPORT = "manifest.json", "report.html"


@dataclass(frozen=True)
class Artifact:
    """An exported model.

    Args:
        folder: the folder that holds it.
        manifest: the content of its ``manifest.json``.
        latency: its time beside its source's, in the words of ``checks.latency``, if it was measured when it was made.
            No file has it, for artifacts are the same wherever they are made.
        effort: seconds by step and peaks of memory of its export, in the words of ``Effort.figures``, if it was just
            made. Its manifest has them if that was asked for.
        work: the use that was made of the folder of ``--work``, if there was one; no file has it either.
        parts: by name, the artifacts in its folders where it is of several graphs, none of which is itself.
    """

    folder: Path
    manifest: Mapping[str, Any]
    latency: Mapping[str, Any] | None = None
    effort: Mapping[str, Any] | None = None
    work: Reuse | None = None
    parts: Mapping[str, Artifact] = field(default_factory=dict)

    @staticmethod
    def open(folder: str | Path) -> Artifact:
        """Read an artifact.

        Raises:
            InputError: if the folder holds no artifact, or one of several graphs.
        """
        manifest = read_manifest(folder)
        if "parts" in manifest:
            raise InputError(_several(folder, manifest["parts"]))
        return Artifact(Path(folder), manifest)

    def sources(self) -> list[Path]:
        """The paths that may be the source: as the manifest says, and from the artifact's folder or one around it.

        The manifest says nothing of the folder of the export, for it is the same wherever it is made.
        """
        path, here = Path(self.manifest["source"]["path"]), self.folder.resolve()
        places = [path] if path.is_absolute() else [path, *(folder / path for folder in (here, *here.parents))]
        return [place for place in places if place.exists()]

    def run(
        self, inputs: Mapping[str, np.ndarray], runtime: str | None = None, provider: str | None = None
    ) -> dict[str, np.ndarray]:
        """Run the artifact once on named inputs.

        Args:
            inputs: by name of the graph's inputs.
            runtime: ``ort``, ``tvm`` or ``triton``; by default the first one that it was made for.
            provider: where onnxruntime computes, ``cpu``, ``cuda`` or another that it has; by default ``cpu``.

        Raises:
            InputError: if the artifact was not made for that runtime, or the provider or the inputs do not fit.
        """
        return self.load(runtime, provider)(inputs)

    def load(self, runtime: str | None = None, provider: str | None = None) -> Any:
        """The artifact as a function of named inputs, for many calls."""
        if self.parts:
            raise InputError(_several(self.folder, self.parts))
        known = runtimes()
        if runtime is not None and runtime not in known:
            raise InputError(unknown("runtime", runtime, known))
        written = self.manifest["runtimes"]
        wanted = next(iter(written)) if runtime is None else runtime
        if wanted not in written:
            raise InputError(
                f"'{self.folder}' was exported for {self.manifest['target']}, which runtime '{wanted}' cannot run"
            )
        if "missing" in written[wanted]:
            raise InputError(f"'{self.folder}' has no files for runtime '{wanted}': {written[wanted]['missing']}")
        load: Callable[..., Any] = backend(known[wanted]).load
        if provider is None:
            return load(self.folder)
        if "provider" not in inspect.signature(load).parameters:
            raise InputError(f"runtime '{wanted}' has no providers: it computes where it was made for")
        return load(self.folder, provider=provider)


def _several(folder: str | Path, parts: Iterable[str]) -> str:
    names = [f"'{Path(folder) / name}'" for name in parts]
    return f"'{folder}' holds {len(names)} graphs, each an artifact: name one of {', '.join(names)}"


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of an artifact, be it of one graph or of several.

    Raises:
        InputError: if the folder holds no artifact.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise InputError(f"'{folder}' is not an artifact: it has no {MANIFEST}")
    try:
        manifest = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' is not readable as JSON: {error}") from error
    kinds = ({"qcompile", "source", "sites", "runtimes"}, {"qcompile", "source", "parts"})
    if not isinstance(manifest, dict) or not any(manifest.keys() >= keys for keys in kinds):
        raise InputError(f"'{path}' is not the manifest of an artifact")
    return manifest


def is_artifact(path: str | Path) -> bool:
    """Whether a path is an artifact's folder."""
    return (Path(path) / MANIFEST).is_file()


def write_manifest(folder: Path, manifest: Mapping[str, Any], along: Iterable[Path] = ()) -> None:
    """Write ``manifest.json``, and beside it copies of files that go along; the same content gives the same bytes.

    Files that the backend wrote itself, such as a configuration, stay as they are.
    """
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n")
    for file in along:
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
