"""The folder of an artifact appears whole or not at all, and a killed export leaves nothing for good."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from filelock import FileLock, Timeout

from qcompile.errors import InputError

__all__ = ["atomic_folder", "undone_on_failure"]

#: Bytes of the random part of a temporary folder's name.
TOKEN_BYTES = 8


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that becomes it on success, and vanishes on failure.

    A lock file beside it is held as long as its process lives: the next export to the same place removes what it can
    lock, and so never the folder of an export that still runs.

    Raises:
        InputError: if ``target`` exists, at the beginning or at the end.
    """
    _sweep(target)
    taken = f"'{target}' exists already: remove it or choose another folder with -o"
    if target.exists():
        raise InputError(taken)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _new_folder(target) as folder:
        yield folder
        try:
            os.replace(folder, target)
        except OSError as error:
            if not target.exists():
                raise
            raise InputError(taken) from error  # another export made it meanwhile


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


def _sweep(target: Path) -> None:
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
