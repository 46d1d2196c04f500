"""The folder of ``--work``: what exports computed, for the next one that would compute the same."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qcompile.errors import InputError, first_line
from qcompile.group.group import ALONE, Group

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Kept", "Reuse", "Work"]

logger = logging.getLogger(__name__)

#: Rooms whose code changes nothing that is kept: they come after it, and the rooms of what is kept import none of them.
AFTERWARDS = ("artifact", "backends", "checks", "cli")

#: The end of names of files that are being written, and after how many seconds without a change nobody writes them.
PART, FORGOTTEN = ".part", 3600.0

T = TypeVar("T")


@dataclass(frozen=True)
class Kept:
    """Something that was computed, in the form in which a file holds it.

    Args:
        arrays: by name.
        facts: the rest, as JSON.
    """

    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Reuse:
    """The use that an export made of the folder.

    Args:
        reused: by kind, how many were there.
        computed: by kind, how many were not.
        notes: files that could not be used or written, each in one sentence.
        full: whether nothing more can be written.
    """

    reused: Counter[str] = field(default_factory=Counter)
    computed: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    full: bool = False

    def summary(self) -> dict[str, Any]:
        """The same as JSON."""
        kinds = sorted(self.reused | self.computed)
        found = {kind: {"reused": self.reused[kind], "computed": self.computed[kind]} for kind in kinds}
        return {"kinds": found, "notes": list(self.notes)}

    def say(self, text: str) -> None:
        """Note something that went wrong and was made up for."""
        self.notes.append(text)
        logger.info(text)


class Work:
    """Results by digest of all that they depend on; without a folder nothing is kept, and nothing found.

    A digest covers the code of this package and the libraries that compute, so that no result of another version is
    ever taken. Files appear whole; several exports may share the folder, for two files of one name hold the same.

    Args:
        folder: is made where there is none.
        group: processes that ask for the same in the same order. The first reads and writes; the others read what it
            could, or have it sent where the folder is not theirs.

    Raises:
        InputError: if the folder cannot be written to.
    """

    def __init__(self, folder: Path | None = None, group: Group = ALONE) -> None:
        self.folder, self.reuse, self._base, self._group = folder, Reuse(), "", group
        if folder is not None:
            group.by_first(lambda: _open(folder))

    def about(self, facts: Callable[[], Any]) -> Work:
        """The same folder for results that depend on further facts, which are JSON and asked for where there is one."""
        if self.folder is None:
            return self
        narrower = copy(self)
        narrower._base = self.key(facts())
        return narrower

    def key(self, facts: Any) -> str:
        """The digest of facts in JSON, and of those that this work is about."""
        return "" if self.folder is None else _digest([self._base or _surroundings(), facts])

    def kept(
        self, kind: str, key: str, make: Callable[[], T], pack: Callable[[T], Kept], unpack: Callable[[Kept], T]
    ) -> T:
        """The content of the folder under a key; where there is none, it is made, and kept there."""
        found = self.find(kind, key)
        if found is not None:
            return unpack(found)
        made = make()
        self.keep(kind, key, lambda: pack(made))
        return made

    def find(self, kind: str, key: str) -> Kept | None:
        """The content of the folder under a key; a file that is torn or foreign is noted, and is none."""
        if self.folder is None:
            return None
        group, found = self._group, self._found(kind, key) if self._group.first else None
        if not group.by_first(lambda: found is not None):
            return None
        found = found if group.first else self._found(kind, key)
        if all(group.gathered(lambda: found is not None)):
            return found
        return group.by_first(lambda: found)

    def _found(self, kind: str, key: str) -> Kept | None:
        """The same for one process."""
        path = self._path(kind, key)
        try:
            found = _read(path, key)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.reuse.say(f"'{path}' is not used, and computed again: {first_line(error)}")
            return None
        self.reuse.reused[kind] += 1
        return found

    def keep(self, kind: str, key: str, pack: Callable[[], Kept]) -> None:
        """Write what was computed into the folder; where that fails, this is noted, and the export goes on."""
        if self.folder is None or not self._group.first:
            return
        self.reuse.computed[kind] += 1
        if not self.reuse.full:
            try:
                _write(self._path(kind, key), key, pack())
            except OSError as error:
                self.reuse.full = True
                self.reuse.say(f"nothing more is kept in '{self.folder}': {error.strerror or first_line(error)}")

    def _path(self, kind: str, key: str) -> Path:
        assert self.folder is not None, "without a folder there are no files"
        return self.folder / f"{kind}-{key}.safetensors"


def _open(folder: Path) -> None:
    """Make a folder, see whether it can be written to, and remove what killed exports left half written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"the folder '{folder}' of --work cannot be written to: {error.strerror}") from error
    for left in folder.glob(f"*{PART}"):
        try:
            if time.time() - left.stat().st_mtime > FORGOTTEN:
                left.unlink()
        except OSError as error:  # another export was faster, or it is another user's
            logger.debug("'%s' stays: %s", left, error)


def _read(path: Path, key: str) -> Kept:
    """A file that ``_write`` wrote.

    Raises:
        FileNotFoundError: if there is none.
        OSError, ValueError: if it cannot be read, or does not hold what was written under that key.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            said = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except SafetensorError as error:
        raise ValueError(f"it is torn, or of another kind ({first_line(error)})") from error
    facts = said.get("facts", "")
    if said.get("key") != key or said.get("content") != _content(arrays, facts):
        raise ValueError("it does not hold what was written")
    return Kept(arrays, json.loads(facts))


def _write(path: Path, key: str, kept: Kept) -> None:
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    arrays = {name: np.asarray(array, order="C") for name, array in kept.arrays.items()}
    facts = json.dumps(kept.facts)
    handle, name = tempfile.mkstemp(PART, f"{path.stem}.", path.parent)
    os.close(handle)
    try:
        save_file(arrays, name, {"key": key, "facts": facts, "content": _content(arrays, facts)})
        os.chmod(name, 0o644)
        os.replace(name, path)
    except SafetensorError as error:
        raise OSError(first_line(error)) from error
    finally:
        Path(name).unlink(missing_ok=True)


def _content(arrays: Mapping[str, np.ndarray], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(arrays[name].data)
    return digest.hexdigest()


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@cache
def _surroundings() -> str:
    """A digest of what computes: the code up to what is kept, the libraries, and the instructions of the processor."""
    import numpy as np
    import onnxruntime as ort
    import torch

    root = Path(__file__).parent
    code = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if place.parts[0] not in AFTERWARDS:
            code.update(place.as_posix().encode() + b"\0" + path.read_bytes())
    processor = platform.machine(), torch.backends.cpu.get_cpu_capability()
    return _digest([code.hexdigest(), torch.__version__, ort.__version__, np.__version__, processor])
