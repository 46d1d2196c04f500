"""The text both byte-level language models learn: Python's own standard library.

A token is a byte, so no tokenizer ships with the models. Files are sorted by path and joined with
the byte 0, which therefore means "a file starts here" and is a usable prompt.
"""

from __future__ import annotations

import argparse
import sysconfig
from pathlib import Path

import numpy as np

__all__ = ["HELD_OUT", "load", "windows"]

# Never trained on. A name covers the module `name.py` and the package `name/`, so that the list
# means the same where a module became a package between two Python versions.
HELD_OUT = (
    "argparse",
    "asyncio/queues",
    "bisect",
    "calendar",
    "csv",
    "dataclasses",
    "email/header",
    "fractions",
    "heapq",
    "http/cookies",
    "json",
    "sched",
    "shlex",
    "statistics",
    "textwrap",
    "unittest/suite",
    "uuid",
    "zipfile",
)

# Not source text anybody wrote: code page tables, rendered manuals, build variables. Tests are left
# out because they repeat the modules they test, the held-out ones too.
SKIPPED_FOLDERS = frozenset(["site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"])
SKIPPED_PREFIX = "_sysconfigdata"

SEPARATOR = b"\0"


def _modules(root: Path) -> list[tuple[str, Path]]:
    """Every module as ("package/name", file), in one order on every machine."""
    found = []
    for file in root.rglob("*.py"):
        relative = file.relative_to(root)
        if SKIPPED_FOLDERS.isdisjoint(relative.parts[:-1]) and not file.name.startswith(SKIPPED_PREFIX):
            found.append((relative.with_suffix("").as_posix(), file))
    return sorted(found)


def _is_held_out(module: str) -> bool:
    return any(module == name or module.startswith(name + "/") for name in HELD_OUT)


def _join(files: list[Path]) -> np.ndarray:
    text = b"".join(SEPARATOR + file.read_bytes() for file in files)
    return np.frombuffer(text, dtype=np.uint8)


def _read_standard_library() -> dict[str, np.ndarray]:
    modules = _modules(Path(sysconfig.get_paths()["stdlib"]))
    return {
        "train": _join([file for name, file in modules if not _is_held_out(name)]),
        "held_out": _join([file for name, file in modules if _is_held_out(name)]),
    }


def load(path: Path | None = None) -> dict[str, np.ndarray]:
    """Bytes of the "train" and "held_out" modules: of this Python, or of the one saved at `path`."""
    if path is None:
        return _read_standard_library()
    with np.load(path) as saved:
        return {split: saved[split] for split in ("train", "held_out")}


def windows(text: np.ndarray, rows: int, length: int) -> np.ndarray:
    """`rows` windows spread evenly over the text, as int64 [rows, length]."""
    starts = np.linspace(0, len(text) - length, rows).astype(np.int64)
    return text[starts[:, None] + np.arange(length)].astype(np.int64)


def main() -> None:
    """Save the corpus: training elsewhere then reads the very same bytes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / ".corpus" / "stdlib.npz")
    parser.add_argument("--windows", type=int, help="save so many held-out windows of 256 bytes instead")
    options = parser.parse_args()
    output, splits = options.output, load()
    output.parent.mkdir(parents=True, exist_ok=True)
    if options.windows:
        np.savez_compressed(output, input_ids=windows(splits["held_out"], options.windows, 256))
        return
    # The folder ignores itself: the corpus is anyone's own Python and need not be committed.
    (output.parent / ".gitignore").write_text("*\n")
    np.savez_compressed(output, **splits)
    print({split: len(text) for split, text in splits.items()}, "bytes ->", output)


if __name__ == "__main__":
    main()
