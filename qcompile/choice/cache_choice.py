"""Chooses how caches are stored: each in one of some formats, within a budget of bytes for each token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qcompile.analysis.attentions import cache_attentions
from qcompile.analysis.cache_sites import QUANTIZING, CacheSite, cache_sites
from qcompile.choice.assignment import Option, assign
from qcompile.choice.cache_candidates import best_cache_plan
from qcompile.choice.cache_samples import MASKED, AttentionSample, attention_samples, cache_batches
from qcompile.choice.export_options import CACHE_BUDGET
from qcompile.errors import InputError
from qcompile.formats.cache_format import CacheFormat
from qcompile.ir.graph import node_name
from qcompile.notes import Decline
from qcompile.run.data import Data
from qcompile.targets.cache_plans import CachePlan, cache_plan_of, give_cache_plan

__all__ = ["FUSING", "choose_caches"]

#: Using an operator that computes attention on packed caches, by the words in which it is declined.
FUSING = "computing attention on packed codes"

#: What is not done where there is too little data, by the words in which it is declined.
_FITTING = "fitting a basis to the cache"

#: Why no tokens of a cache stay float32.
_ONE_SIZE = "it has one size, so that no token is the newest or the first by its place"

#: Operators between attention and what reads its output.
_CARRIES = {"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}


def choose_caches(
    model: ir.Model, formats: Sequence[CacheFormat], data: Data, decline: Decline, *, rotates: bool, fuses: bool,
    budget: float | None = None, costs: Mapping[str, float] | None = None,
) -> list[CachePlan]:  # fmt: skip
    """Plan each cache of a graph; the operators that append to them get the plans.

    Each takes the format of which attention's output errs least. Under a budget the sum of these errors is least, each
    weighed by what it costs.

    Args:
        model: the float graph in its final basis.
        formats: those that a cache may have; none leaves them as they are.
        data: to learn static scales from, and to compare candidates on.
        decline: called for what is left alone.
        rotates: whether keys and values may change basis.
        fuses: whether the target has an operator that computes attention on packed caches.
        budget: bytes that one more token may take in all of them.
        costs: of a relative squared error of their inputs, by name of site; attention whose output goes elsewhere costs
            as much as all others in the mean.

    Raises:
        InputError: if the graph has no cache, or scales are static and there is no data, or no formats meet the budget.
    """
    if not formats:
        return []
    for fmt in formats:
        if fmt.static and data.random:
            reason = f"cache format '{fmt.name}' has static scales, which need calibration data: take int8-token"
            raise InputError(reason)
    sites, left = cache_sites(model)
    for found in left:
        decline(found.site, found.what, found.reason)
    fitting = {site: own for site in sites if (own := _fitting(site, formats, decline))}
    if not fitting:
        why = f": {left[0].reason}" if left else ""
        raise InputError(f"the graph has no cache that can be quantized{why}")
    if fuses and data.random:
        decline("*", FUSING, "there is no calibration data to see on that no position sees a later one")
        fuses = False
    attentions = cache_attentions(fitting)
    learned = cache_batches(model, attentions, data.batches)
    judged = cache_batches(model, attentions, data.held_out) if data.held_out else learned
    if rotates and not data.held_out:
        decline("*", _FITTING, data.too_few)
    ways: dict[CacheSite, list[CachePlan]] = {}
    seen = []
    for attention, roles in attentions:
        seen.append(attention_samples(attention, roles, judged))
        fits = attention_samples(attention, roles, learned) if data.held_out else []
        for site in roles.values():
            alpha = None if attention is None else _cost(attention.output, costs or {})
            plans = [best_cache_plan(site, fmt, learned, fits, seen[-1], rotates=rotates) for fmt in fitting[site]]
            ways[site] = [replace(plan, alpha=alpha) for plan in plans]
    chosen = dict(zip(ways, _assigned(list(ways.values()), budget), strict=True))
    for samples, (_, roles) in zip(seen, attentions, strict=True):
        _plan_attention({site: chosen[site] for site in roles.values()}, samples, decline, fuses)
    return [plan for site in fitting if (plan := cache_plan_of(site.pair.node, site.name)) is not None]


def _fitting(site: CacheSite, formats: Sequence[CacheFormat], decline: Decline) -> list[CacheFormat]:
    """The formats in which a cache can be stored."""
    reasons = [_ONE_SIZE if fmt.keeps and not site.grows else fmt.fits(site.features) for fmt in formats]
    if all(reasons):
        decline(site.name, QUANTIZING, str(reasons[0]))
    return [fmt for fmt, reason in zip(formats, reasons, strict=True) if reason is None]


def _assigned(ways: Sequence[Sequence[CachePlan]], budget: float | None) -> list[CachePlan]:
    """One plan for each cache; each plan knows what the formats that it was chosen from would err."""
    known = [plan.alpha for own in ways for plan in own if plan.alpha is not None]
    mean = math.fsum(known) / len(known) if known else 1.0
    options = [
        [
            Option(
                plan.format.name, (plan.error or 0.0) * (mean if plan.alpha is None else plan.alpha),
                {CACHE_BUDGET: plan.bytes_per_token},
            )
            for plan in own
        ]
        for own in ways
    ]  # fmt: skip
    found = assign(options, {} if budget is None else {CACHE_BUDGET: budget})
    return [
        replace(own[index], formats={plan.format.name: plan.error for plan in own})
        for own, index in zip(ways, found.choice, strict=True)
    ]


def _cost(output: ir.Value, costs: Mapping[str, float]) -> float | None:
    """The cost of errors of an attention's output to the sites that read it; ``None`` if that is not known."""
    found = [costs[name] for name in map(node_name, _reading(output)) if name in costs]
    return math.fsum(found) if found else None


def _reading(value: ir.Value) -> Iterator[ir.Node]:
    for node, _ in value.uses():
        if node.domain or node.op_type in _CARRIES:  # of other domains are transforms
            yield from _reading(node.outputs[0])
        else:
            yield node


def _plan_attention(
    own: Mapping[CacheSite, CachePlan], samples: Sequence[AttentionSample], decline: Decline, fuses: bool
) -> None:  # fmt: skip
    """Give the caches of one attention their plans, with the form in which it computes."""
    if any(site.held for site in own):
        _plan_held(own, decline, fuses)
        return
    reason = None
    if fuses and not all(site.grows for site in own):
        reason = "the graph writes into a cache of one size"
    elif fuses:
        reason = _not_fused(list(own.values()), samples)
    if reason is not None:
        decline(", ".join(site.name for site in own), FUSING, reason)
    form = "fused" if fuses and reason is None else "standard"
    for site, plan in own.items():
        give_cache_plan(site.pair.node, replace(plan, form=form))


def _plan_held(own: Mapping[CacheSite, CachePlan], decline: Decline, fuses: bool) -> None:
    """Plan the caches that an operator holds itself, where it can pack them itself."""
    reason = _not_packed(list(own.values())) if fuses else "the target does not run the operator on packed codes"
    reason = "keys or values cannot be packed without the other" if reason is None and len(own) != 2 else reason
    for site, plan in own.items():
        if reason is None:
            give_cache_plan(site.pair.node, replace(plan, form="fused"))
        else:
            decline(site.name, QUANTIZING, f"GroupQueryAttention holds it, and {reason}")


def _not_fused(own: Sequence[CachePlan], seen: Sequence[AttentionSample]) -> str | None:
    """Why attention cannot be computed on packed codes by GroupQueryAttention; ``None`` if it can."""
    if not seen:
        return "it is no attention over keys and values of two caches, whose heads neighbours share"
    if (reason := _not_packed(own)) is not None:
        return reason
    for sample in seen:
        later = np.arange(sample.key.shape[2]) > sample.places[:, None]
        if np.any(np.broadcast_to(sample.bias, (*sample.bias.shape[:2], *later.shape))[..., later] > MASKED):
            return "positions see later ones"
    return None


def _not_packed(own: Sequence[CachePlan]) -> str | None:
    """Why GroupQueryAttention does not read keys and values as they are stored; ``None`` if it does."""
    formats = list(dict.fromkeys(plan.format for plan in own))
    for fmt in formats:
        if not fmt.plain and (not fmt.static or fmt.bits < 4 or not fmt.integers):
            return f"'{fmt.name}' has no integers of 4 or 8 bits with static scales: take int8-channel or int4-channel"
        if fmt.keeps:
            return f"'{fmt.name}' keeps some tokens in float32: take it without options"
    if len(formats) > 1:
        return f"keys and values differ: {' and '.join(fmt.name for fmt in formats)}"
    return None
