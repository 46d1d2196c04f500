"""Samples of what attention reads and makes on calibration data, by which ways to store its caches are judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from qcompile.analysis.attentions import CacheAttention
from qcompile.analysis.cache_sites import CacheSite
from qcompile.ir.required import name_of
from qcompile.run.session import Session

__all__ = ["MASKED", "AttentionSample", "attention_samples", "cache_batches"]

#: Positions of the data that are looked at.
_POSITIONS = 4096

#: Queries of a batch on which attention is computed, spread over its positions.
_QUERIES = 256

#: Scores below this are masked.
MASKED = -1e4

#: The relative L2 distance to the graph's own output that another order of sums explains.
_SAME = 1e-3


@dataclass(eq=False)
class AttentionSample:
    """One batch.

    Args:
        query: some of the queries ``[batch, heads, queries, features]``.
        key, value: all of them, ``[batch, heads, length, features]``.
        bias: what is added to the scores, ``[.., queries, length]``.
        scale: the factor of scores.
        places: of the queries among the keys, int64 ``[queries]``.
    """

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    bias: np.ndarray
    scale: float
    places: np.ndarray

    def attend(self, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        """The output of attention; neighbouring queries share a head of keys and values."""
        return self._weights(self._products(key)) @ self._shared(value)

    def attend_recent(self, key: np.ndarray, value: np.ndarray, recent: int) -> np.ndarray:
        """The same where each query meets so many positions, its own and those before it, as they were."""
        back = self.places[:, None] - np.arange(key.shape[2])
        near = (back >= 0) & (back < recent)
        weights = self._weights(np.where(near, self._products(self.key), self._products(key)))
        return np.where(near, weights, 0) @ self._shared(self.value) + np.where(near, 0, weights) @ self._shared(value)

    def _shared(self, x: np.ndarray) -> np.ndarray:
        return np.repeat(x, self.query.shape[1] // x.shape[1], 1)

    def _products(self, key: np.ndarray) -> np.ndarray:
        return self.query @ self._shared(key).swapaxes(-1, -2) * np.float32(self.scale)

    def _weights(self, products: np.ndarray) -> np.ndarray:
        scores = products + self.bias
        scores -= scores.max(-1, keepdims=True)
        weights = np.exp(scores)
        return weights / weights.sum(-1, keepdims=True)

    @cached_property
    def output(self) -> np.ndarray:
        """The output of attention in floating point."""
        return self.attend(self.key, self.value)

    @cached_property
    def reads(self) -> np.ndarray:
        """Whether a position reads any; padding does not."""
        return np.any(self.bias > MASKED, -1, keepdims=True)

    def query_moments(self, heads: int) -> np.ndarray:
        """Sums of ``q qᵀ`` over the queries of each head of keys, float64 ``[heads, features, features]``."""
        kept = np.where(self.reads, self.query, 0).swapaxes(0, 1).astype(np.float64)
        rows = kept.reshape(heads, -1, kept.shape[-1])
        return rows.swapaxes(-1, -2) @ rows


def cache_batches(
    model: ir.Model, attentions: Iterable[tuple[CacheAttention | None, Mapping[str, CacheSite]]],
    batches: Sequence[Mapping[str, np.ndarray]],
) -> list[dict[str, np.ndarray]]:  # fmt: skip
    """Values of caches and their attention on some thousand positions of the data, by name."""
    names = list(dict.fromkeys(name for own in attentions for name in _taps(*own)))
    session = Session(model, names, optimize=False)
    return [{name: made[name] for name in names} for made in map(session.run, _some(batches))]


def _taps(attention: CacheAttention | None, sites: Mapping[str, CacheSite]) -> Iterator[str]:
    """Values to look at: what is new and what is held, and all that attention reads and makes."""
    for site in sites.values():
        yield name_of(site.new)
        yield name_of(site.pair.present)
    if attention is not None:
        yield name_of(attention.output)
        for value in (attention.query, attention.bias):
            if value is not None and value.const_value is None:
                yield name_of(value)


def _some(batches: Sequence[Mapping[str, np.ndarray]]) -> Iterator[Mapping[str, np.ndarray]]:
    count = 0
    for batch in batches:
        yield batch
        count += max(array.shape[0] * array.shape[1] if array.ndim == 2 else 0 for array in batch.values())
        if count >= _POSITIONS:
            break


def attention_samples(
    attention: CacheAttention | None, sites: Mapping[str, CacheSite], batches: Sequence[Mapping[str, np.ndarray]]
) -> list[AttentionSample]:  # fmt: skip
    """The operands of an attention, by batch; none if there is none.

    None either if it makes something else of them than ``AttentionSample.attend``.
    """
    if attention is None or attention.heads is None:
        return []
    found = []
    for batch in batches:
        q = batch[name_of(attention.query)]
        key, value = (batch[name_of(sites[role].pair.present)] for role in ("key", "value"))
        some = np.unique(np.linspace(0, q.shape[2] - 1, min(q.shape[2], _QUERIES)).astype(np.int64))
        places = some + key.shape[2] - q.shape[2]
        bias = _bias(attention, batch, q.shape[2], key.shape[2])[..., some, :]
        sample = AttentionSample(q[:, :, some], key, value, bias, attention.scale, places)
        want, have = (x * sample.reads for x in (batch[name_of(attention.output)][:, :, some], sample.output))
        if np.linalg.norm(have - want) > _SAME * np.linalg.norm(want):
            return []
        found.append(sample)
    return found


def _bias(attention: CacheAttention, batch: Mapping[str, np.ndarray], length: int, total: int) -> np.ndarray:
    """The numbers that an attention adds to its scores."""
    bias, mask = np.zeros((1, 1, length, total), np.float32), attention.bias
    if mask is not None:
        held = mask.const_value.numpy() if mask.const_value is not None else batch[name_of(mask)]
        given = np.where(held, 0, np.float32(-1e30)) if held.dtype == bool else held.astype(np.float32)
        bias = np.broadcast_to(given, np.broadcast_shapes(given.shape, bias.shape))
    if attention.causal:
        bias = bias + np.triu(np.full((length, total), np.float32(-1e30)), 1 + total - length)
    return bias
