"""Where activations wait for the next section of a graph: on the device, in RAM, or on disk, as a budget says."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qcompile.run.memory_budget import Memory

__all__ = ["Shelf"]


@dataclass
class _Filed:
    """A tensor in a file."""

    path: Path
    shape: torch.Size
    dtype: torch.dtype

    def read(self, device: torch.device) -> Tensor:
        raw = torch.from_file(str(self.path), size=self.path.stat().st_size, dtype=torch.uint8)
        return raw.to(device, copy=True).view(self.dtype).view(self.shape)


@dataclass
class Shelf:
    """Variables by key, such as a batch, between two sections.

    What comes first stays where it is: batches are read in turn, so that to move the oldest would move all.

    Args:
        device: where they are computed.
        memory: the budget.
    """

    device: torch.device
    memory: Memory = field(default_factory=Memory)

    def __post_init__(self) -> None:
        self._bounds = self.memory.bounds(self.device)
        self._used = dict.fromkeys(self._bounds, 0)
        self._kept: dict[Hashable, tuple[dict[str, Any], dict[str, int]]] = {}
        self._folder: Path | None = None
        self._files = 0

    def put(self, key: Hashable, variables: Mapping[str, Any]) -> None:
        """Lay variables down."""
        kept, held = {}, dict.fromkeys(self._bounds, 0)
        for name, value in variables.items():
            kept[name] = self._laid(value, held) if isinstance(value, Tensor) else value
        self._kept[key] = kept, held

    def take(self, key: Hashable) -> dict[str, Any]:
        """The variables on the device; they are on the shelf no more."""
        kept, held = self._kept.pop(key)
        for place, size in held.items():
            self._used[place] -= size
        found = {name: self._back(value) for name, value in kept.items()}
        for value in kept.values():
            if isinstance(value, _Filed):
                value.path.unlink()
        return found

    def look(self, key: Hashable, name: str) -> Any:
        """One variable on the device; all stay on the shelf."""
        return self._back(self._kept[key][0][name])

    def _laid(self, value: Tensor, held: dict[str, int]) -> Tensor | _Filed:
        size = value.untyped_storage().nbytes()  # a view keeps all of it
        for place, bound in self._bounds.items():
            if self._used[place] + size <= bound:
                self._used[place] += size
                held[place] += size
                return value if place == "device" or self.device.type == "cpu" else value.cpu()
            size = value.numel() * value.itemsize
        return self._file(value)

    def _file(self, value: Tensor) -> _Filed:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="qcompile-"))
        self._files += 1
        path = self._folder / str(self._files)
        value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tofile(path)
        return _Filed(path, value.shape, value.dtype)

    def _back(self, value: Any) -> Any:
        if isinstance(value, _Filed):
            return value.read(self.device)
        return value.to(self.device) if isinstance(value, Tensor) else value

    def close(self) -> None:
        """Let go of everything."""
        self._kept.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
