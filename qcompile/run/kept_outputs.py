"""Outputs of a graph for batches that are asked for again, in files: computing them anew takes longer than reading."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["KeptOutputs"]

#: Bytes of outputs that are kept; what comes later is computed anew.
MOST = 4 << 30


class KeptOutputs:
    """Tensors by name, for each batch, by its identity."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Mapping[str, Any], dict[str, tuple[str, torch.dtype, torch.Size]]]] = {}
        self._folder: str | None = None
        self._bytes = 0

    def __contains__(self, key: int) -> bool:
        return key in self._found

    def of(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors of a batch, on the CPU."""
        return {name: _read(*own) for name, own in self._found[id(batch)][1].items()}

    def keep(self, batch: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors of a batch, if there is room and they are not there."""
        if id(batch) in self._found:
            return
        self._bytes += sum(tensor.nbytes for tensor in tensors.values())
        if self._bytes > MOST:
            return
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="qcompile-")
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        files: dict[str, tuple[str, torch.dtype, torch.Size]] = {}
        for name, tensor in tensors.items():
            path = os.path.join(self._folder, f"{len(self._found)}-{len(files)}")
            tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tofile(path)
            files[name] = path, tensor.dtype, tensor.shape
        self._found[id(batch)] = batch, files  # with the batch, whose identity nothing else takes meanwhile


def _read(path: str, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    if not math.prod(shape):
        return torch.empty(shape, dtype=dtype)
    raw = torch.from_numpy(np.fromfile(path, np.uint8))  # not mapped: its pages would count as memory of the process
    return raw.view(dtype).view(shape)
