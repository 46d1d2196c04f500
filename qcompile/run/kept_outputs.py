"""Outputs of a graph for batches that are asked for again: computing them anew takes longer than reading.

They are kept in files, but those of a GPU there, while they take little of what is free.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["KeptOutputs"]

#: Bytes of outputs that are kept; what comes later is computed anew.
MOST = 4 << 30

#: The part of a GPU's free memory that they may take.
SHARE = 0.02


class KeptOutputs:
    """Tensors by name, for each batch, by its identity."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Mapping[str, Any], dict[str, _File | Tensor]]] = {}
        self._folder: str | None = None
        self._bytes = 0

    def __contains__(self, key: int) -> bool:
        return key in self._found

    def of(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors of a batch, on the CPU or where they were computed."""
        found = self._found[id(batch)][1].items()
        return {name: own if isinstance(own, Tensor) else own.read() for name, own in found}

    def keep(self, batch: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Keep the tensors of a batch, if there is room and they are not there."""
        if id(batch) in self._found:
            return
        self._bytes += sum(tensor.nbytes for tensor in tensors.values())
        if self._bytes > MOST:
            return
        own = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        devices = {tensor.device for tensor in own.values()}
        if all(
            device.type == "cuda" and self._bytes < SHARE * torch.cuda.mem_get_info(device)[0] for device in devices
        ):
            self._found[id(batch)] = batch, {**own}
            return
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="qcompile-")
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        files: dict[str, _File | Tensor] = {}
        for name, tensor in own.items():
            path = os.path.join(self._folder, f"{len(self._found)}-{len(files)}")
            tensor.cpu().view(-1).view(torch.uint8).numpy().tofile(path)
            files[name] = _File(path, tensor.dtype, tensor.shape)
        self._found[id(batch)] = batch, files  # with the batch, whose identity nothing else takes meanwhile


@dataclass(frozen=True)
class _File:
    """A tensor in a file."""

    path: str
    dtype: torch.dtype
    shape: torch.Size

    def read(self) -> Tensor:
        if not math.prod(self.shape):
            return torch.empty(self.shape, dtype=self.dtype)
        raw = torch.from_numpy(np.fromfile(self.path, np.uint8))  # not mapped: its pages would count as memory of ours
        return raw.view(self.dtype).view(self.shape)
