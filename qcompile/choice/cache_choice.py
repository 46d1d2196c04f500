"""Chooses how caches are stored: scales and a rotation, by the error of what attention makes of them.

Keys are rotated behind their rotary embedding, and queries with them, where that is predicted to help: once a token
(QuaRot, arXiv:2404.00456; per token and head, arXiv:2604.19157). Values are likewise, and the output of attention back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from qcompile.analysis.cache_sites import QUANTIZING, CacheSite, cache_sites
from qcompile.errors import InputError
from qcompile.formats.cache_format import CacheFormat
from qcompile.ir.required import name_of, optional
from qcompile.notes import Decline
from qcompile.run.data import Data
from qcompile.run.session import Session
from qcompile.targets.cache_plans import CachePlan, give_cache_plan, rotation_of
from qcompile.transforms import has_hadamard

__all__ = ["FUSING", "choose_caches"]

#: Using an operator that computes attention on packed caches, by the words in which it is declined.
FUSING = "computing attention on packed codes"

#: Positions of the data on which candidates are compared.
_POSITIONS = 2048

#: Parts of the largest magnitude that static scales reach, of which the one with the least squared error is taken.
_REACHES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)

#: An online rotation must lower the error to this part.
_WORTH = 0.9

#: Scores below this are masked.
_MASKED = -1e4


@dataclass
class _Seen:
    """One batch: queries ``[batch, heads, length, features]``, keys, values, and what is added to the scores."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    bias: np.ndarray
    scale: float

    def attend(self, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        """The output of attention."""
        shared = self.query.shape[1] // key.shape[1]
        key, value = (np.repeat(x, shared, 1) for x in (key, value))
        scores = self.query @ key.swapaxes(-1, -2) * np.float32(self.scale) + self.bias
        scores -= scores.max(-1, keepdims=True)
        weights = np.exp(scores)
        return (weights / weights.sum(-1, keepdims=True)) @ value


def choose_caches(
    model: ir.Model, fmt: CacheFormat | None, data: Data, decline: Decline, *, rotates: bool, fuses: bool
) -> list[CachePlan]:  # fmt: skip
    """Plan each cache of a graph; the operators that append to them get the plans.

    Args:
        model: the float graph in its final basis.
        fmt: the format of all caches; ``None`` leaves them as they are.
        data: to learn static scales from, and to compare candidates on.
        decline: called for what is left alone.
        rotates: whether keys and values may be rotated.
        fuses: whether the target has an operator that computes attention on packed caches.

    Raises:
        InputError: if the graph has no cache, or scales are static and there is no data.
    """
    if fmt is None:
        return []
    sites, left = cache_sites(model)
    for found in left:
        decline(found.site, found.what, found.reason)
    sites = [site for site in sites if _fits(site, fmt, decline)]
    if not sites:
        why = f": {left[0].reason}" if left else ""
        raise InputError(f"the graph has no cache that can be quantized{why}")
    if fmt.static and data.random:
        raise InputError(f"cache format '{fmt.name}' has static scales, which need calibration data: take int8-token")
    session = Session(model, list(dict.fromkeys(name for site in sites for name in _taps(site))), optimize=False)
    batches = [session.run(batch) for batch in _sample(data)]
    readers = {site.reader: {s.role: s for s in sites if s.reader is site.reader} for site in sites}
    plans: dict[str, CachePlan] = {}
    for node, roles in readers.items():
        seen = list(_seen(node, roles, batches))
        reason = _not_fused(node, roles, fmt, seen) if fuses else None
        if reason is not None:
            decline(", ".join(site.name for site in roles.values()), FUSING, reason)
        form = "fused" if fuses and reason is None else "standard"
        for site in roles.values():
            plans[site.name] = replace(_plan(site, fmt, batches, seen, rotates), form=form)
            give_cache_plan(site.pair.node, plans[site.name])
    return [plans[site.name] for site in sites]


def _fits(site: CacheSite, fmt: CacheFormat, decline: Decline) -> bool:
    reason = fmt.fits(site.features)
    if reason is not None:
        decline(site.name, QUANTIZING, reason)
    return reason is None


def _taps(site: CacheSite) -> Iterator[str]:
    """Values to look at: what is new, and, where attention is one operator, its queries and its mask."""
    yield name_of(site.new)
    yield name_of(site.pair.present)
    if site.reader.op_type == "Attention":
        for index in (0, 3):
            value = optional(site.reader, index)
            if value is not None and value.const_value is None:
                yield name_of(value)


def _sample(data: Data) -> list[Mapping[str, np.ndarray]]:
    """Batches of some thousand positions."""
    batches, count = [], 0
    for batch in data.batches:
        batches.append(batch)
        count += max(array.shape[0] * array.shape[1] if array.ndim == 2 else 0 for array in batch.values())
        if count >= _POSITIONS:
            break
    return batches


def _seen(
    node: ir.Node, roles: Mapping[str, CacheSite], batches: Sequence[Mapping[str, np.ndarray]]
) -> Iterator[_Seen]:  # fmt: skip
    """The operands of an attention that is one operator and reads two caches."""
    query, mask = optional(node, 0), optional(node, 3)
    if node.op_type != "Attention" or len(roles) != 2 or query is None or query.shape is None or len(query.shape) != 4:
        return
    for batch in batches:
        q = batch[name_of(query)]
        key, value = (batch[name_of(roles[role].pair.present)] for role in ("key", "value"))
        bias = np.zeros((1, 1, q.shape[2], key.shape[2]), np.float32)
        if mask is not None:
            held = mask.const_value.numpy() if mask.const_value is not None else batch[name_of(mask)]
            bias = np.where(held, 0, np.float32(-1e30)) if held.dtype == bool else held.astype(np.float32)
        if node.attributes.get_int("is_causal", 0):
            bias = bias + np.triu(np.full(bias.shape[-2:], np.float32(-1e30)), 1 + key.shape[2] - q.shape[2])
        yield _Seen(q, key, value, bias, node.attributes.get_float("scale", q.shape[-1] ** -0.5))


def _plan(
    site: CacheSite, fmt: CacheFormat, batches: Sequence[Mapping[str, np.ndarray]], seen: Sequence[_Seen], rotates: bool
) -> CachePlan:  # fmt: skip
    """The better of both candidates: as it is, and rotated."""
    new = [batch[name_of(site.new)] for batch in batches]
    plain = CachePlan(site.name, name_of(site.pair.present), site.role, site.heads, site.features, fmt)
    plans = {"none": replace(plain, scale=_scale(fmt, site, new, None))}
    if rotates and seen and has_hadamard(site.features):
        turned = rotation_of(site.features)
        plans["hadamard"] = replace(plain, rotation=turned, scale=_scale(fmt, site, new, turned))
    if not seen:
        return plans["none"]
    errors = {name: _error(plan, seen) for name, plan in plans.items()}
    best = "hadamard" if errors.get("hadamard", np.inf) < _WORTH * errors["none"] else "none"
    return replace(plans[best], error=errors[best], errors=errors)


def _error(plan: CachePlan, seen: Sequence[_Seen]) -> float:
    """The relative squared error of the output of attention, if this cache alone is rounded."""
    wrong = right = 0.0
    for batch in seen:
        key, value = batch.key, batch.value
        want = batch.attend(key, value)
        held = plan.fake(key if plan.role == "key" else value)
        have = batch.attend(held, value) if plan.role == "key" else batch.attend(key, held)
        read = np.any(batch.bias > _MASKED, -1, keepdims=True)  # padding sees nothing
        wrong += float(np.square((have - want) * read, dtype=np.float64).sum())
        right += float(np.square(want * read, dtype=np.float64).sum())
    return wrong / right if right else 0.0


def _scale(
    fmt: CacheFormat, site: CacheSite, new: Sequence[np.ndarray], turned: np.ndarray | None
) -> np.ndarray | None:  # fmt: skip
    """Static scales by least squared error; ``None`` for those that come with tokens."""
    if fmt.static is None:
        return None
    rows = np.concatenate([x.swapaxes(1, 2).reshape(-1, site.heads, site.features) for x in new])
    top = np.abs(rows).max(0)
    if turned is not None:
        rows = rows @ turned.T
        top = np.abs(rows).max(0)
    elif _turns_halves(site):
        first, second = np.split(rows, 2, -1)
        top = np.tile(np.sqrt(np.square(first) + np.square(second)).max(0), (1, 2))  # at any position
    top = np.maximum(top if fmt.static == "channel" else np.full((1, 1), top.max()), np.float32(1e-8))
    best, least = top, np.full(top.shape, np.inf)
    for reach in _REACHES:
        scale = (top * np.float32(reach) / np.float32(fmt.high)).astype(np.float32)
        errors = np.square(fmt.fake(rows[:, None], scale[None]).reshape(rows.shape) - rows, dtype=np.float64)
        error = errors.sum(0) if fmt.static == "channel" else errors.sum().reshape(1, 1)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    best = best.astype(np.float32)
    return best.reshape(1, site.heads, 1, site.features) if fmt.static == "channel" else best.reshape(1)


def _turns_halves(site: CacheSite) -> bool:
    """Whether keys come from a rotary embedding that turns the first half of a head with the second.

    What a feature reaches then depends on the position, but what a pair reaches does not.
    """
    node = site.new.producer()
    if node is None or node.op_type != "RotaryEmbedding" or node.domain:
        return False
    if node.attributes.get_int("interleaved", 0):
        return False
    return node.attributes.get_int("rotary_embedding_dim", 0) in (0, site.features)


def _not_fused(
    node: ir.Node, roles: Mapping[str, CacheSite], fmt: CacheFormat, seen: Sequence[_Seen]
) -> str | None:  # fmt: skip
    """Why attention cannot be computed on packed codes by GroupQueryAttention; ``None`` if it can."""
    if not seen:
        return "attention is not one operator that reads keys and values of two caches"
    if not fmt.static or fmt.bits < 4:
        return f"'{fmt.name}' has no static scales of 4 or 8 bits: take int8-channel or int4-channel"
    if node.attributes.get_float("softcap", 0.0) or any(out.uses() for out in node.outputs[1:]):
        return "it caps or returns its scores"
    for batch in seen:
        length, total = batch.query.shape[2], batch.key.shape[2]
        later = np.triu(np.ones((length, total), bool), 1 + total - length)
        bias = np.broadcast_to(batch.bias, (*batch.bias.shape[:2], length, total))
        if np.any(bias[..., later] > _MASKED):
            return "positions see later ones"
    return None
