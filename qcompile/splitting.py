"""Splitting: parts of weights that are computed apart, by what calibration data shows, before anything is chosen."""

from __future__ import annotations

from dataclasses import replace

from qcompile.analysis.analyze import analyze
from qcompile.analysis.edges import edge_sites
from qcompile.analysis.inventory import take_inventory
from qcompile.analysis.named_sites import fitting
from qcompile.analysis.siblings import Siblings, siblings_of
from qcompile.choice.splits import SPLIT, Branch, Columns, split_of
from qcompile.choice.wishes import wishes_of
from qcompile.passes.pipeline import run_pass
from qcompile.passes.split_branches import SplitBranches
from qcompile.passes.split_columns import SplitColumns
from qcompile.passes.split_features import SplitFeatures
from qcompile.stages import Prepared, Request
from qcompile.statistics.calibration import collect
from qcompile.targets.eligible import quantizable

__all__ = ["split_sites"]


def split_sites(prepared: Prepared, request: Request) -> Prepared:
    """Split the weights of sites that are to be quantized and stand at no edge of the model, in each of the ways."""
    options, data, state = request.options, prepared.seen.data, prepared.state
    for word in options.split:
        how = split_of(word)
        if not isinstance(how, Branch) and data.random:
            reason = "there is no calibration data, and what is loud on random inputs is so on no others"
            state.decline("*", f"columns of their own for loud features: {word}", reason)
            continue
        groups = _groups(prepared, request)
        wanted = {group.name: group.axis for group in groups}
        known = {} if data.random else collect(
            state.model, wanted, data, device=options.device, memory=options.memory, progress=request.progress
        )  # fmt: skip
        if isinstance(how, Columns):
            run_pass(SplitColumns(groups, known, how), state)
        elif isinstance(how, Branch):
            run_pass(SplitBranches(groups, known, request.schemes[0], how, options.device), state)
        else:
            run_pass(SplitFeatures(groups, known, how), state)
        analysis = analyze(state.model)
        prepared = replace(prepared, analysis=analysis, weights=take_inventory(prepared.source.model, analysis))
    return prepared


def _groups(prepared: Prepared, request: Request) -> list[Siblings]:
    options, analysis = request.options, prepared.analysis
    sites, _ = quantizable(analysis, request.target)
    out = edge_sites(analysis.model, sites) | wishes_of(sites, request.target, (), {}, {}).left_out.keys()
    left = [*options.exclude, *(pattern for pattern, word in options.format_for.items() if word == "float")]
    out |= {site.name for pattern in left for site in fitting(pattern, sites)}  # some may name parts to come
    return siblings_of([s for s in sites if s.name not in out and SPLIT not in s.node.metadata_props])
