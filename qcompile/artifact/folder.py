"""The folder of an artifact appears whole or not at all, and a killed export leaves nothing for good."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from glob import escape
from pathlib import Path

from filelock import FileLock, Timeout

from qcompile.artifact.artifact import MANIFEST, REPORT, is_artifact, read_manifest
from qcompile.errors import InputError
from qcompile.group.group import Group

__all__ = ["atomic_folder", "folder_of_first", "remove_left", "undone_on_failure"]

#: Bytes of the random part of a temporary folder's name.
TOKEN_BYTES = 8


def folder_of_first(target: Path, overwrite: bool, group: Group) -> AbstractContextManager[Path]:
    """``atomic_folder`` in the first process of a group; the others write nothing."""
    return atomic_folder(target, overwrite) if group.first else nullcontext(target)


@contextmanager
def atomic_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``target`` that becomes it on success, and vanishes on failure.

    A lock file beside it is held as long as its process lives: the next export to the same place removes what it can
    lock, and so never the folder of an export that still runs.

    Args:
        overwrite: whether an artifact that is there makes way, once the new one is complete.

    Raises:
        InputError: if ``target`` exists, at the beginning or at the end, and may not be replaced.
    """
    remove_left(target)
    _check_free(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _new_folder(target) as folder:
        yield folder
        _check_free(target, overwrite)  # another export may have made it meanwhile
        if target.exists():
            _exchange(folder, target)
        else:
            _move(folder, target)


def _check_free(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise InputError(f"'{target}' exists already: choose another folder with -o, or replace it with --overwrite")
    if target.exists() and (others := _foreign(target)):
        raise InputError(f"'{target}' is not replaced: {others}")


def _foreign(target: Path) -> str | None:
    """Why a folder must stay: it is no artifact, or holds files that no export wrote."""
    if not is_artifact(target):
        return f"it is no artifact, for it has no {MANIFEST}"
    manifest = read_manifest(target)
    own = {MANIFEST, REPORT, *manifest.get("along", ()), *(name.rstrip("/") for name in manifest.get("files", ()))}
    found = (path.relative_to(target) for path in target.rglob("*") if not path.is_dir())
    foreign = sorted(path for path in found if own.isdisjoint(map(Path.as_posix, (path, *path.parents))))
    return f"it holds '{foreign[0]}', which is no part of the artifact" if foreign else None


def _move(folder: Path, target: Path) -> None:
    try:
        os.replace(folder, target)
    except OSError as error:
        if not target.exists():
            raise
        raise InputError(f"'{target}' exists already: another export made it meanwhile") from error


def _exchange(folder: Path, target: Path) -> None:
    """Put a folder in the place of another, which comes back if that fails and is removed if it does not."""
    old = folder.with_name(f"{folder.name}.old")
    os.replace(target, old)
    try:
        os.replace(folder, target)
    except BaseException:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def undone_on_failure(folder: Path) -> Iterator[None]:
    """Remove whatever came into a folder meanwhile if what is done there fails; the rest stays."""
    before = set(folder.rglob("*"))
    try:
        yield
    except BaseException:
        for path in sorted(set(folder.rglob("*")) - before, reverse=True):  # a folder comes after its content
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()
        raise


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A new folder beside ``target``, locked before it is made; both are gone in the end."""
    while True:
        folder = target.parent / f".{target.name}.{secrets.token_hex(TOKEN_BYTES)}"
        with _locked(folder) as own:
            if not own:  # a sweep was faster: it takes the lock file away, so another name is due
                continue
            try:
                folder.mkdir()
                folder.chmod(0o755)
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


def remove_left(target: Path) -> None:
    """Remove the temporary folders of exports to the same place that were killed: nobody holds their locks."""
    token = "[0-9a-f]" * (2 * TOKEN_BYTES)
    for left in target.parent.glob(f".{escape(target.name)}.{token}.lock"):
        folder = left.with_suffix("")
        with suppress(PermissionError), _locked(folder) as own:  # another user's is for that user to sweep
            if own:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether the lock of a folder could be taken at once; if so it is held, and its file is gone in the end."""
    path = folder.with_name(f"{folder.name}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        with suppress(PermissionError):  # Windows keeps files that are open; there, releasing the lock removes it
            path.unlink(missing_ok=True)
        lock.release()
