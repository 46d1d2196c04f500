"""The budget of memory for activations, of whole models on calibration data."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["SHARE", "Memory", "free_host_bytes", "parse_memory"]

#: The part of what is free that activations may take if nothing was said.
SHARE = 0.5

_SIZE = re.compile(r"([-\d.]+) ?([A-Z]*)")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Memory:
    """The bytes that activations may take, on the device and in RAM; what is more goes to the next, at last to disk.

    ``None`` stands for half of what is free.
    """

    device: int | None = None
    host: int | None = None

    def bounds(self, device: torch.device) -> dict[str, int]:
        """Bytes by place."""
        host = self.host if self.host is not None else int(SHARE * free_host_bytes())
        if device.type != "cuda":
            return {"host": host}
        import torch

        free = torch.cuda.mem_get_info(device)[0] if self.device is None else 0
        return {"device": self.device if self.device is not None else int(SHARE * free), "host": host}


def parse_memory(words: Mapping[str, str | int]) -> Memory:
    """Bytes by place, of words such as ``{"device": "40GB", "host": "32GB"}``.

    Raises:
        InputError: if a place is unknown, or a size is none.
    """
    found = {}
    for place, size in words.items():
        if place not in ("device", "host"):
            raise InputError(f"--memory knows 'device' and 'host', not '{place}'")
        found[place] = size if isinstance(size, int) else _bytes(size)
        if found[place] < 0:
            raise InputError(f"--memory {place}={size} is less than nothing")
    return Memory(**found)


def _bytes(text: str) -> int:
    words: Any = _SIZE.fullmatch(text.strip().upper().removesuffix("IB"))
    try:
        return int(float(words[1]) * _UNITS[words[2]])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"'{text}' is no number of bytes: write 800MB, 40GB or 16G") from None


def free_host_bytes() -> int:
    """RAM that nothing needs now."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # another system
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
