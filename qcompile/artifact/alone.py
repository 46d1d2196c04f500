"""The check of an artifact by itself: where it was brought to, without its source and without the compiler."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompile.errors import InputError, TargetError

if TYPE_CHECKING:
    from qcompile.artifact.artifact import Artifact

__all__ = ["Alone", "check_alone", "digests"]

#: The size of dimensions that are open, in inputs that are drawn.
OPEN = 2


@dataclass(frozen=True)
class Alone:
    """The findings of the check.

    Args:
        files: how many files have the bytes that the manifest states.
        runs: by runtime, whether it runs the artifact, in words, with the reason where it does not.
        faults: everything that is wrong, one sentence each.
    """

    files: int
    runs: Mapping[str, str]
    faults: tuple[str, ...]


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files, and of those in folders, by their path below ``folder``."""
    found = {}
    for name in names:
        path = folder / name
        inner = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in inner:
            with file.open("rb") as content:
                found[file.relative_to(folder).as_posix()] = hashlib.file_digest(content, "sha256").hexdigest()
    return found


def check_alone(artifact: Artifact, inputs: Mapping[str, np.ndarray] | None = None) -> Alone:
    """Check the files of an artifact against its manifest, and run it once in each runtime that is installed.

    Args:
        inputs: to run it on; by default zeros and ones in the shapes that the manifest states.

    Raises:
        InputError: if the artifact was written before manifests stated digests.
    """
    stated = artifact.manifest.get("digests")
    if stated is None:
        raise InputError(f"the manifest of '{artifact.folder}' states no digests: give the source with --against")
    found = {name: _fault_of(artifact.folder, name, digest) for name, digest in stated.items()}
    faults = [f"{name}: {fault}" for name, fault in found.items() if fault is not None]
    runs = {name: _run(artifact, name, inputs, faults) for name in artifact.manifest["runtimes"]}
    return Alone(sum(fault is None for fault in found.values()), runs, tuple(faults))


def _fault_of(folder: Path, name: str, digest: str) -> str | None:
    if not (folder / name).is_file():
        return "the file is missing"
    return None if digests(folder, [name])[name] == digest else "the file is not the one that was written"


def _run(artifact: Artifact, runtime: str, inputs: Mapping[str, np.ndarray] | None, faults: list[str]) -> str:
    """Whether a runtime runs an artifact, in words; what is wrong with that is added to the faults."""
    missing = artifact.manifest["runtimes"][runtime].get("missing")
    if missing is not None:
        return f"has no files: {missing}"
    try:
        run = artifact.load(runtime)
    except TargetError as error:  # an extra that is not installed, a machine that is not there
        return f"not tried: {error}"
    except InputError as error:
        faults.append(f"{runtime}: {error}")
        return f"does not load: {error}"
    given = _plain_inputs(artifact.manifest["inputs"]) if inputs is None else inputs
    if given is None:
        return "loads; not run: give inputs, of which some are no plain arrays"
    try:
        outputs = run(given)
    except InputError as error:
        if inputs is None:
            return f"loads; takes no zeros and ones, so give inputs: {error}"
        faults.append(f"{runtime}: {error}")
        return f"does not run: {error}"
    wild = [name for name, value in outputs.items() if value.dtype.kind == "f" and np.isnan(value).any()]
    if wild:
        faults.append(f"{runtime}: NaN in {', '.join(wild)}")
    return f"runs, with NaN in {', '.join(wild)}" if wild else "runs"


def _plain_inputs(stated: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray] | None:
    """Ones, and zeros for whole numbers, as a rule indices: in every range. ``None`` if an input is no plain array."""
    made = {}
    for value in stated:
        if value["shape"] is None or value["dtype"] not in np.sctypeDict:
            return None
        shape = [size if isinstance(size, int) else OPEN for size in value["shape"]]
        dtype = np.dtype(value["dtype"])
        made[value["name"]] = np.zeros(shape, dtype) if dtype.kind in "iu" else np.ones(shape, dtype)
    return made
