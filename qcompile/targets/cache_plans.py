"""The plan of a cache: its format, its scales and its transform, kept on the operator that appends to it.

As plans of sites, these stand in ``meta`` of the node, which clones share. Manifests hold them whole, so that an
artifact's caches can be written and read as floating-point numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.formats.cache_format import CacheFormat, parse_cache_format

__all__ = ["CachePlan", "cache_plan_of", "caches_planned", "drop_cache_plans", "give_cache_plan", "with_float_caches"]

_PLAN = "qcompile.cache"

#: Behind the name of a cache, that of the scales that come with its tokens.
SCALES = "_scales"

#: A graph as a function of named inputs.
_Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class CachePlan:
    """One cache, ready to be lowered.

    Args:
        past, present: names of the input and of the output.
        role: ``key`` or ``value``.
        heads, features: sizes of the cache.
        format: how it is stored.
        scale: static scales, float32 ``[1, heads, 1, features]`` or ``[1]``; ``None`` where tokens bring theirs.
        rotation: the orthogonal matrix, float32, by which queries and keys are multiplied in front; ``None`` for none.
        error: of the output of attention, relative squared, predicted by calibration data; ``None`` if not known.
        errors: the same by candidate.
        form: how attention computes with it: ``standard`` operators, or ``fused``.
    """

    past: str
    present: str
    role: str
    heads: int
    features: int
    format: CacheFormat
    scale: np.ndarray | None = None
    rotation: np.ndarray | None = None
    error: float | None = None
    errors: Mapping[str, float] | None = None
    form: str = "standard"

    @property
    def scales(self) -> tuple[str, str]:
        """Names of the input and the output that hold the scales of tokens."""
        return self.past + SCALES, self.present + SCALES

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one more token takes."""
        return self.format.bytes_per_token(self.heads, self.features)

    def fake(self, x: np.ndarray) -> np.ndarray:
        """Keys or values as the cache holds them, in the basis of the float model."""
        turned = x if self.rotation is None else x @ self.rotation.T
        held = self.format.fake(turned, self.scale)
        return held if self.rotation is None else held @ self.rotation

    def pack(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """A cache of the float model as inputs of the artifact."""
        turned = x if self.rotation is None else x @ self.rotation.T
        codes, scales = self.format.encode(turned, self.scale)
        return {self.past: codes} | ({} if scales is None else {self.scales[0]: scales})

    def unpack(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The cache among the outputs of the artifact, in the basis of the float model."""
        numbers = self.scale if self.format.static else outputs[self.scales[1]]
        held = self.format.decode(outputs[self.present], numbers)
        return held if self.rotation is None else held @ self.rotation

    def to_entry(self) -> dict[str, Any]:
        """The plan as a manifest holds it."""
        return {
            "past": self.past, "present": self.present, "role": self.role, "heads": self.heads,
            "features": self.features, "format": self.format.name, "form": self.form,
            "transform": "none" if self.rotation is None else "hadamard",
            "bytes_per_token": self.bytes_per_token,
            "scale": None if self.scale is None else [float(x) for x in self.scale.ravel()],
        }  # fmt: skip

    @staticmethod
    def from_entry(entry: Mapping[str, Any]) -> CachePlan:
        """The plan that a manifest holds."""
        fmt, heads, features = parse_cache_format(entry["format"]), entry["heads"], entry["features"]
        scale = None if entry["scale"] is None else np.array(entry["scale"], np.float32)
        if scale is not None and scale.size > 1:
            scale = scale.reshape(1, heads, 1, features)
        turned = None if entry["transform"] == "none" else rotation_of(features)
        return CachePlan(
            entry["past"], entry["present"], entry["role"], heads, features, fmt, scale, turned, form=entry["form"]
        )  # fmt: skip


def rotation_of(features: int) -> np.ndarray:
    """The Hadamard matrix by which keys and queries of a head are multiplied, float32."""
    from qcompile.transforms import hadamard_matrix

    return (np.asarray(hadamard_matrix(features), np.float64) / np.sqrt(features)).astype(np.float32)


def give_cache_plan(node: ir.Node, plan: CachePlan) -> None:
    """Plan the cache that an operator appends to."""
    node.meta[_PLAN] = plan


def cache_plan_of(node: ir.Node) -> CachePlan | None:
    """The plan of the cache that an operator appends to; ``None`` where that stays as it is."""
    return node.meta.get(_PLAN)


def caches_planned(model: ir.Model) -> list[tuple[ir.Node, CachePlan]]:
    """Operators that append to planned caches, with the plans, in the order of the graph."""
    found = ((node, cache_plan_of(node)) for node in model.graph)
    return [(node, plan) for node, plan in found if plan is not None]


def drop_cache_plans(model: ir.Model) -> None:
    """Let every cache be as it is."""
    for node in model.graph:
        node.meta.pop(_PLAN, None)


def with_float_caches(run: _Run, plans: Sequence[CachePlan]) -> _Run:
    """An artifact as a function of the float model's inputs and outputs: caches are packed and unpacked around it."""
    if not plans:
        return run

    def around(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        feeds = dict(inputs)
        for plan in plans:
            feeds |= plan.pack(feeds[plan.past])
        outputs = dict(run(feeds))
        for plan in plans:
            outputs[plan.present] = plan.unpack(outputs)
            outputs.pop(plan.scales[1], None)
        return outputs

    return around
