"""The stage that rounds weights, while the graph that was brought to another basis is checked against its source."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from qcompile.checks.equivalence import begin_equivalence, settle
from qcompile.checks.sites import sites_to_check
from qcompile.choice.cache_choice import choose_caches
from qcompile.choice.export_options import CACHE_BUDGET
from qcompile.choice.placement import total_transform
from qcompile.ir.graph import node_name
from qcompile.passes.pipeline import run_pass
from qcompile.passes.quantize import Quantize
from qcompile.rounding.methods import method_of
from qcompile.stages import Quantized, Rotated
from qcompile.targets.plans import planned
from qcompile.threads import threads

__all__ = ["quantize", "round_sites"]


def quantize(rotated: Rotated) -> Quantized:
    """Round the weights, and check meanwhile that the rotated graph is still the same function."""
    prepared, chosen = rotated.prepared, rotated.wanted
    schemes, given = chosen.choice.schemes, prepared.seen.data.batches[0]
    checks = sites_to_check([site for site in chosen.sites if schemes[site.name].weight is not None])
    taps = list(dict.fromkeys(name for site in checks for name in (*site.reads, site.written) if name not in given))
    progress = chosen.request.progress
    group = chosen.request.options.group
    begin = partial(
        begin_equivalence, prepared.source, prepared.model, prepared.seen, progress, taps, chosen.request.options.device
    )
    if method_of(chosen.request.options.method).walks or not group.first:  # which uses all cores
        equal = begin()() if group.first else None
        round_sites(rotated)
    else:
        with threads(1) as beside:
            checking = beside.submit(begin())
            round_sites(rotated)
        equal = checking.result()
    if equal is not None:  # the others have the same graph
        equal = settle(prepared.source, prepared.model, prepared.seen, equal)
    plans = {node_name(node): found for node, found in planned(prepared.model)}
    request, decline = chosen.request, prepared.state.decline
    options = request.options
    caches = choose_caches(
        prepared.model, request.target.cache_formats(options.cache_words), prepared.seen.data, decline,
        rotates=request.rotates_caches, fuses=request.target.fused_caches, budget=options.budget.get(CACHE_BUDGET),
        costs={name: curvature.input for name, curvature in chosen.choice.curvatures.items()},
    )  # fmt: skip
    return Quantized(replace(rotated, equivalence=equal), plans, checks, caches)


def round_sites(rotated: Rotated) -> None:
    """Round the weights and plan their sites."""
    prepared, chosen = rotated.prepared, rotated.wanted
    choice, options, data = chosen.choice, chosen.request.options, prepared.seen.data
    pairs = [(own, total_transform(prepared.analysis, own, rotated.placement)) for own in rotated.siblings]
    learned = choice.statistics if data.held_out else {}  # what random inputs teach is worse than nothing on others
    work = chosen.work.about(lambda: choice.placement.to_json(prepared.analysis))
    rounding = Quantize(
        pairs, choice.tables, choice.schemes, learned, options.method, options.device, data, options.memory,
        chosen.request.progress, work, options.group, chosen.request.target.modules,
        chosen.request.target.static == "all", chosen.request.target.neighbours,
    )  # fmt: skip
    run_pass(rounding, prepared.state)
    method = method_of(options.method)
    if method.learns and not learned and (method.walks or not data.random):
        prepared.state.decline("*", method.title, f"{data.too_few}, so weights are {method.otherwise}")
