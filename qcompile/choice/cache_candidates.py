"""Ways to store one cache: its scales and its basis, by the error of what attention makes of it.

Keys change basis behind their rotary embedding, and queries with them, where that is predicted to help: once a token
(QuaRot, arXiv:2404.00456; per token and head, arXiv:2604.19157). Values do likewise, and the output of attention comes
back. A basis of each head is WUSH (arXiv:2512.00956), whose second moments are those of keys and of the queries that
meet them: an error of a key counts as much as queries see of it. What attention makes of an error of a value is as
loud in any direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from qcompile.analysis.cache_sites import CacheSite
from qcompile.choice.cache_samples import AttentionSample
from qcompile.formats.cache_format import CacheFormat
from qcompile.ir.required import name_of
from qcompile.targets.cache_plans import CacheBasis, CachePlan, hadamard_basis
from qcompile.transforms import has_hadamard
from qcompile.transforms.fitted import wush_of_moments

__all__ = ["best_cache_plan"]

#: Parts of the largest magnitude that static scales reach, of which the one with the least squared error is taken.
_REACHES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)

#: A basis must lower the error of one that is simpler to this part.
_WORTH = 0.9


def best_cache_plan(
    site: CacheSite, fmt: CacheFormat, learned: Sequence[Mapping[str, np.ndarray]], fits: Sequence[AttentionSample],
    judged: Sequence[AttentionSample], *, rotates: bool,
) -> CachePlan:  # fmt: skip
    """The best of the bases that a cache may be stored in, of which each must be worth what is more to compute.

    Args:
        site: the cache.
        fmt: how it is stored.
        learned: what its graph holds on calibration data: static scales are those of least squared error.
        fits: its attention on the same; none where there is too little to fit a basis to.
        judged: its attention on other data; none where attention is not one operator, and no basis is known to help.
        rotates: whether it may change basis.
    """
    new = [batch[name_of(site.new)] for batch in learned]
    plain = CachePlan(site.name, name_of(site.pair.present), site.role, site.heads, site.features, fmt)
    bases = [None, *(_bases(site, fmt, fits) if rotates and judged and not fmt.plain else ())]
    plans = [replace(plain, basis=basis, scale=_scale(fmt, site, new, basis)) for basis in bases]
    if not judged:
        return plans[0]
    errors = {plan.transform: _error(plan, judged) for plan in plans}
    best = plans[0]
    for plan in plans[1:]:
        if errors[plan.transform] < _WORTH * errors[best.transform]:
            best = plan
    return replace(best, error=errors[best.transform], errors=errors)


def _bases(site: CacheSite, fmt: CacheFormat, learned: Sequence[AttentionSample]) -> list[CacheBasis]:
    """Bases in which a cache may be stored, the simplest first; the last one is fitted if there is something to."""
    if not has_hadamard(site.features):
        return []
    fitted = [_fitted(site, fmt, learned)] if learned else []
    return [hadamard_basis(site.features), *fitted]


def _fitted(site: CacheSite, fmt: CacheFormat, learned: Sequence[AttentionSample]) -> CacheBasis:
    """The basis of each head in which errors of all features count alike, and keys or values are as loud as before.

    Where a format has more bits in front, it is the half of the directions in which most is lost that comes first.
    """
    held = [sample.key if site.role == "key" else sample.value for sample in learned]
    rows = np.concatenate([x.swapaxes(0, 1).reshape(site.heads, -1, site.features) for x in held], 1)
    moments = rows.swapaxes(-1, -2).astype(np.float64) @ rows
    met = np.broadcast_to(np.eye(site.features), moments.shape)
    if site.role == "key":
        met = np.sum([sample.query_moments(site.heads) for sample in learned], 0)
    parts = 1 if fmt.halves is None else 2
    matrices = wush_of_moments(torch.from_numpy(moments), torch.tensor(met), parts=parts).matrices.numpy()
    loud, made = (np.einsum("hii->h", m) for m in (moments, matrices @ moments @ matrices.swapaxes(-1, -2)))
    scale = np.sqrt(np.divide(loud, made, out=np.ones_like(loud), where=(loud > 0) & (made > 0)))
    return CacheBasis("wush", (matrices * scale[:, None, None]).astype(np.float32))


def _error(plan: CachePlan, judged: Sequence[AttentionSample]) -> float:
    """The relative squared error of the output of attention, if this cache alone is rounded."""
    wrong = right = 0.0
    rounding = replace(plan, format=replace(plan.format, recent=0))
    for sample in judged:
        key, value, want = sample.key, sample.value, sample.output
        held = rounding.fake(key if plan.role == "key" else value)
        operands = (held, value) if plan.role == "key" else (key, held)
        recent = plan.format.recent
        have = sample.attend_recent(*operands, recent) if recent else sample.attend(*operands)
        wrong += float(np.square((have - want) * sample.reads, dtype=np.float64).sum())
        right += float(np.square(want * sample.reads, dtype=np.float64).sum())
    return wrong / right if right else 0.0


def _scale(
    fmt: CacheFormat, site: CacheSite, new: Sequence[np.ndarray], basis: CacheBasis | None
) -> np.ndarray | None:  # fmt: skip
    """Static scales by least squared error; ``None`` for those that come with tokens."""
    if fmt.static is None:
        return None
    held = new if basis is None else [basis.into(x) for x in new]
    rows = np.concatenate([x.swapaxes(1, 2).reshape(-1, site.heads, site.features) for x in held])
    top = np.abs(rows).max(0)
    if basis is None and _turns_halves(site):
        first, second = np.split(rows, 2, -1)
        top = np.tile(np.sqrt(np.square(first) + np.square(second)).max(0), (1, 2))  # at any position
    top = np.maximum(top if fmt.static == "channel" else np.full((1, 1), top.max()), np.float32(1e-8))
    best, least = top, np.full(top.shape, np.inf)
    for reach in _REACHES:
        scale = (top * np.float32(reach) / np.float32(fmt.largest)).astype(np.float32)
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
    if site.held:
        return bool(site.reader.attributes.get_int("do_rotary", 0))
    if node is None or node.op_type != "RotaryEmbedding" or node.domain:
        return False
    if node.attributes.get_int("interleaved", 0):
        return False
    return node.attributes.get_int("rotary_embedding_dim", 0) in (0, site.features)
