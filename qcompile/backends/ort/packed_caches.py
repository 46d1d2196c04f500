"""Caches as packed codes: inputs and outputs of the graph, decoded where attention reads them, or read as they are.

In standard operators a cache is decoded for each token that is written; GroupQueryAttention of onnxruntime reads codes
of 4 and 8 bits with static scales itself. What is new is quantized when it is appended, in both.
"""

from __future__ import annotations

import onnx_ir as ir

from qcompile.analysis.attentions import cache_attentions
from qcompile.analysis.cache_sites import cache_sites
from qcompile.backends.ort.cache_in_graph import CacheInGraph
from qcompile.backends.ort.fused_caches import Fusing
from qcompile.ir.graph import drop_unused
from qcompile.targets.cache_plans import CachePlan, caches_planned

__all__ = ["lower_caches"]


def lower_caches(model: ir.Model) -> list[CachePlan]:
    """Rewrite each planned cache in place, and return the plans."""
    plans = {plan.past: plan for _, plan in caches_planned(model)}
    if not plans:
        return []
    sites = [site for site in cache_sites(model)[0] if site.name in plans]
    fusing = Fusing(model)
    for attention, roles in cache_attentions(sites):
        caches = {role: CacheInGraph(model, site, plans[site.name]) for role, site in roles.items()}
        for cache in caches.values():
            cache.turn_reader()
        if all(site.held for site in roles.values()):
            fusing.pack(caches)
        elif attention is not None and all(cache.plan.form == "fused" for cache in caches.values()):
            fusing.fuse(attention, caches)
        else:
            for cache in caches.values():
                cache.decode()
    drop_unused(model)
    return list(plans.values())
