"""The plan of a cache: its format, its scales and its transform, kept on the operator that appends to it.

As plans of sites, these stand in ``meta`` of the node, which clones share. Manifests hold them whole, so that an
artifact's caches can be written and read as floating-point numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.formats.cache_format import CacheFormat
from qcompile.formats.cache_words import parse_cache_format

__all__ = [
    "CacheBasis", "CachePlan", "cache_plan_of", "cache_plans_in", "caches_planned", "drop_cache_plans",
    "give_cache_plan", "hadamard_basis", "with_float_caches", "write_bases",
]  # fmt: skip

_PLAN = "qcompile.cache"

#: Behind the name of a cache, that of the scales that come with its tokens.
SCALES = "_scales"

#: Behind the name of a cache, those of its tokens that stay float32.
FIRST, RECENT = "_first", "_recent"

#: In an artifact, the matrices of bases that are fitted to data, by name of the cache's input.
BASES = "caches.npz"

#: A graph as a function of named inputs.
_Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class CacheBasis:
    """The basis in which keys or values are stored.

    Args:
        kind: the transform's name: ``hadamard`` or ``wush``.
        matrices: float32 ``[heads, features, features]``, one in front where all heads share it.
    """

    kind: str
    matrices: np.ndarray

    @cached_property
    def inverses(self) -> np.ndarray:
        """Matrices back, float32, of the same shape: queries of keys are multiplied by them from the right."""
        return np.ascontiguousarray(np.linalg.inv(self.matrices.astype(np.float64)), np.float32)

    def into(self, x: np.ndarray) -> np.ndarray:
        """Keys or values ``[batch, heads, length, features]`` in this basis."""
        return x @ self.matrices.swapaxes(-1, -2)

    def out_of(self, x: np.ndarray) -> np.ndarray:
        """Keys or values in this basis as the float model has them."""
        return x @ self.inverses.swapaxes(-1, -2)


@dataclass(frozen=True, eq=False)
class CachePlan:
    """One cache, ready to be lowered.

    Args:
        past, present: names of the input and of the output.
        role: ``key`` or ``value``.
        heads, features: sizes of the cache.
        format: how it is stored.
        scale: static scales, float32 ``[1, heads, 1, features]`` or ``[1]``; ``None`` where tokens bring theirs.
        basis: in which it is stored, to which queries or the output of attention are brought; ``None`` for its own.
        error: of the output of attention, relative squared, predicted by calibration data; ``None`` if not known.
        errors: the same by transform.
        formats: the same by format, each with its best transform.
        alpha: what an error of the output of attention costs, per unit; ``None`` if not known.
        form: how attention computes with it: ``standard`` operators, or ``fused``.
    """

    past: str
    present: str
    role: str
    heads: int
    features: int
    format: CacheFormat
    scale: np.ndarray | None = None
    basis: CacheBasis | None = None
    error: float | None = None
    errors: Mapping[str, float] | None = None
    formats: Mapping[str, float | None] | None = None
    alpha: float | None = None
    form: str = "standard"

    @property
    def scales(self) -> tuple[str, str]:
        """Names of the input and the output that hold the scales of tokens."""
        return self.past + SCALES, self.present + SCALES

    @property
    def first(self) -> tuple[str, str]:
        """Names of the input and the output that hold the first tokens, which stay float32."""
        return self.past + FIRST, self.present + FIRST

    @property
    def recent(self) -> tuple[str, str]:
        """Names of the input and the output that hold the newest tokens, which are float32 still."""
        return self.past + RECENT, self.present + RECENT

    @property
    def parts(self) -> dict[str, str]:
        """The outputs that take the places of inputs, by these: codes, and what else the format has."""
        own = [(self.past, self.present)]
        own += [self.scales] if self.format.scale_numbers(self.features) else []
        own += [self.first] if self.format.first else []
        return dict([*own, self.recent] if self.format.recent else own)

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one more token takes, once there are more than those that stay float32."""
        return self.format.bytes_per_token(self.heads, self.features)

    @property
    def transform(self) -> str:
        """The kind of its basis."""
        return "none" if self.basis is None else self.basis.kind

    def fake(self, x: np.ndarray) -> np.ndarray:
        """Keys or values as the cache holds them, in the basis of the float model."""
        return self.unpack({self.parts[name]: part for name, part in self.pack(x).items()})

    def pack(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """A cache of the float model as inputs of the artifact."""
        fmt, x = self.format, self._into(np.asarray(x, np.float32))
        start = min(fmt.first, x.shape[2])
        end = max(start, x.shape[2] - fmt.recent)
        codes, scales = fmt.encode(x[:, :, start:end], self.scale)
        kept = {self.first[0]: x[:, :, :start], self.recent[0]: x[:, :, end:]}
        return {name: part for name, part in ({self.past: codes, self.scales[0]: scales} | kept).items()
                if name in self.parts and part is not None}  # fmt: skip

    def unpack(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The cache among the outputs of the artifact, in the basis of the float model."""
        held = self.format.decode(outputs[self.present], outputs.get(self.scales[1]), self.scale)
        sides = [[outputs[name]] if name in outputs else [] for name in (self.first[1], self.recent[1])]
        return self._out_of(np.concatenate([*sides[0], held, *sides[1]], 2))

    def _into(self, x: np.ndarray) -> np.ndarray:
        return x if self.basis is None else self.basis.into(x)

    def _out_of(self, x: np.ndarray) -> np.ndarray:
        return x if self.basis is None else self.basis.out_of(x)

    def to_entry(self) -> dict[str, Any]:
        """The plan as a manifest holds it, without the matrices of a basis that was fitted."""
        return {
            "past": self.past, "present": self.present, "role": self.role, "heads": self.heads,
            "features": self.features, "format": self.format.name, "form": self.form, "transform": self.transform,
            "bytes_per_token": self.bytes_per_token,
            "fixed_bytes": self.format.fixed_bytes(self.heads, self.features),
            "scale": None if self.scale is None else [float(x) for x in self.scale.ravel()],
        }  # fmt: skip


def cache_plans_in(manifest: Mapping[str, Any], folder: str | Path) -> list[CachePlan]:
    """The plans of an artifact's caches."""
    return [_from_entry(entry, Path(folder)) for entry in manifest.get("caches", ())]


def _from_entry(entry: Mapping[str, Any], folder: Path) -> CachePlan:
    fmt, heads, features = parse_cache_format(entry["format"]), entry["heads"], entry["features"]
    scale = None if entry["scale"] is None else np.array(entry["scale"], np.float32)
    if scale is not None and scale.size > 1:
        scale = scale.reshape(1, heads, 1, features)
    basis = None
    if (kind := entry["transform"]) == "hadamard":
        basis = hadamard_basis(features)
    elif kind != "none":
        with np.load(folder / BASES) as held:
            basis = CacheBasis(kind, held[entry["past"]])
    return CachePlan(
        entry["past"], entry["present"], entry["role"], heads, features, fmt, scale, basis, form=entry["form"]
    )  # fmt: skip


def write_bases(plans: Iterable[CachePlan], folder: Path) -> tuple[str, ...]:
    """Write the matrices that were fitted into an artifact; the file's name, if there are any."""
    fitted = {plan.past: plan.basis.matrices for plan in plans if plan.basis and plan.basis.kind != "hadamard"}
    if not fitted:
        return ()
    np.savez(folder / BASES, allow_pickle=False, **fitted)
    return (BASES,)


def hadamard_basis(features: int) -> CacheBasis:
    """The Hadamard matrix, which all heads share."""
    from qcompile.transforms import hadamard_matrix

    matrix = np.asarray(hadamard_matrix(features), np.float64) / np.sqrt(features)
    return CacheBasis("hadamard", matrix[None].astype(np.float32))


def give_cache_plan(node: ir.Node, plan: CachePlan) -> None:
    """Plan a cache that an operator appends to."""
    node.meta[_PLAN] = {**node.meta.get(_PLAN, {}), plan.past: plan}


def cache_plan_of(node: ir.Node, past: str) -> CachePlan | None:
    """The plan of a cache that an operator appends to, by its name; ``None`` where that stays as it is."""
    found: dict[str, CachePlan] = node.meta.get(_PLAN, {})
    return found.get(past)


def caches_planned(model: ir.Model) -> list[tuple[ir.Node, CachePlan]]:
    """Operators that append to planned caches, with the plans, in the order of the graph."""
    return [(node, plan) for node in model.graph for plan in node.meta.get(_PLAN, {}).values()]


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
            for part in set(plan.parts.values()) - {plan.present}:
                del outputs[part]
        return outputs

    return around
