"""The machine that times are measured on."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from pathlib import Path

__all__ = ["machine", "word_of"]


def machine(packages: tuple[str, ...], threads: int) -> dict[str, str | int]:
    """The processor, the threads that compute, and the versions of what runs the artifacts."""
    versions = {name: metadata.version(name) for name in packages}
    return {"processor": _processor(), "threads": threads, **versions}


def word_of(described: dict[str, str | int]) -> str:
    """A machine as the name of a file: ``amd-epyc-25-17-threads-1-onnxruntime-1.32.0``."""
    words = (str(value) if name == "processor" else f"{name} {value}" for name, value in described.items())
    text = " ".join(words)
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def _processor() -> str:
    """Its name and, where the system tells, its family, model and the widest vectors of bytes that it multiplies."""
    listing = Path("/proc/cpuinfo")
    if not listing.is_file():
        return platform.processor() or platform.machine()
    pairs = [line.partition(":") for line in listing.read_text().split("\n\n")[0].splitlines()]
    facts = {name.strip(): value.strip() for name, _, value in pairs}
    known = [facts[name] for name in ("model name", "cpu family", "model") if name in facts]
    flags = facts.get("flags", facts.get("Features", "")).split()
    widest = next((flag for flag in ("amx_int8", "avx512_vnni", "avx_vnni", "avx2", "asimddp") if flag in flags), "")
    return " ".join([*known, widest]).strip() or platform.machine()
