"""Objects that a program refers to by name besides plain weights: packed weights, transforms, activation formats."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import Any

import numpy as np

from qcompile.backends.gpu.packing import describe
from qcompile.formats import Format
from qcompile.operators.names import Names

__all__ = ["Objects", "Packed", "label"]


@dataclass(frozen=True)
class Packed:
    """A packed weight, table or transform.

    Args:
        kind: the class of the kernels that holds it, or ``table``.
        tensors: by part.
        meta: everything else.
    """

    kind: str
    tensors: Mapping[str, np.ndarray]
    meta: Mapping[str, Any]


@dataclass
class Objects:
    """All of one program.

    Args:
        names: gives identifiers.
    """

    names: Names
    packed: dict[str, Packed] = field(default_factory=dict)
    formats: dict[str, dict[str, Any]] = field(default_factory=dict)
    _seen: dict[Any, str] = field(default_factory=dict)

    def add(self, wanted: str, kind: str, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> str:
        """Register under a name like ``wanted``; what is equal, such as weights that layers share, is kept once."""
        digest = hashlib.sha256()
        for array in tensors.values():
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        key = (kind, repr(meta), digest.digest())
        if key not in self._seen:
            self._seen[key] = self.names.make(wanted)
            self.packed[self._seen[key]] = Packed(kind, tensors, meta)
        return self._seen[key]

    def format(self, fmt: Format) -> str:
        """The name of an activation format."""
        if ("format", fmt.name) not in self._seen:
            name = self._seen["format", fmt.name] = self.names.make(f"as_{fmt.name}")
            self.formats[name] = describe(fmt)
        return self._seen["format", fmt.name]


def label(weights: Sequence[str]) -> str:
    """A name for weights that are packed as one: ``layers.0.q`` and ``layers.0.k`` give ``layers.0.q_k``."""
    parts = [re.sub(r"(_transposed|_T|\.weight|_weight)+$", "", name) for name in weights]
    start = commonprefix(parts)
    start = start[: max(start.rfind("."), start.rfind("_")) + 1] if len(parts) > 1 else ""
    return start + "_".join(part[len(start) :] for part in parts)
