"""Splitting: parts of weights that are computed apart, by what calibration data shows, before anything is chosen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qcompile.analysis.analyze import analyze
from qcompile.analysis.edges import edge_sites
from qcompile.analysis.inventory import take_inventory
from qcompile.analysis.named_sites import fitting
from qcompile.analysis.siblings import Siblings, siblings_of
from qcompile.analysis.spaces import Site
from qcompile.choice.branches import Apart, alone, scheme_of, with_branches
from qcompile.choice.selection import choose
from qcompile.choice.splits import SPLIT, Auto, Branch, Columns, beside, split_of
from qcompile.choice.wishes import wishes_of
from qcompile.ir.graph import add_initializer, append_node
from qcompile.ir.required import constant, name_of, operand
from qcompile.ir.sums import inseparable
from qcompile.passes.pipeline import run_pass
from qcompile.passes.split_branches import SplitBranches
from qcompile.passes.split_columns import SplitColumns
from qcompile.passes.split_features import SplitFeatures
from qcompile.stages import Prepared, Request
from qcompile.statistics.calibration import collect
from qcompile.targets.eligible import quantizable
from qcompile.targets.plans import plan_of
from qcompile.targets.scheme import Scheme

__all__ = ["branch_digests", "split_sites", "store_in_half"]


def split_sites(prepared: Prepared, request: Request) -> Prepared:
    """Split the weights of sites that are to be quantized and stand at no edge of the model, in each of the ways."""
    options, data, state = request.options, prepared.seen.data, prepared.state
    for word in options.split:
        how = split_of(word)
        if isinstance(how, Auto):
            finest = request.target.scheme(how.format) if how.format else max(request.schemes, key=_bits)
            schemes = with_branches(request.schemes, how.ranks, finest)
            prepared = _where_it_pays(prepared, request, schemes, f"branches: {how}")
            continue
        if not isinstance(how, Branch) and data.random:
            reason = "there is no calibration data, and what is loud on random inputs is so on no others"
            state.decline("*", f"columns of their own for loud features: {word}", reason)
            continue
        groups = _groups(prepared, request)
        wanted = {group.name: group.reading for group in groups}
        known = {} if data.random else collect(
            state.model, wanted, data, device=options.device, memory=options.memory, progress=request.progress
        )  # fmt: skip
        if isinstance(how, Columns):
            run_pass(SplitColumns(groups, known, how), state)
        elif isinstance(how, Branch):
            run_pass(SplitBranches(groups, known, alone(request.schemes)[0], how, options.device), state)
        else:
            run_pass(SplitFeatures(groups, known, how), state)
        prepared = _analyzed(prepared)
    if any(isinstance(scheme, Apart) for scheme in (*request.schemes, *_wished(request).values())):
        prepared = _where_it_pays(prepared, request, request.schemes, "branches that formats name")
    return prepared


def _wished(request: Request) -> dict[str, Scheme]:
    return {pattern: scheme_of(request.target, word) for pattern, word in request.options.format_for.items()}


def _analyzed(prepared: Prepared) -> Prepared:
    analysis = analyze(prepared.model)
    return replace(prepared, analysis=analysis, weights=take_inventory(prepared.source.model, analysis))


def _bits(scheme: Scheme) -> float:
    return scheme.bits


def _where_it_pays(prepared: Prepared, request: Request, schemes: Sequence[Scheme], what: str) -> Prepared:
    """Put branches beside the sites for which the decision about formats, transforms and branches takes one.

    It is made again on the graph that has them: what it leaves alone there is said then.
    """
    options, target, state, analysis = request.options, request.target, prepared.state, prepared.analysis
    groups = _groups(prepared, request)
    separable = {site.name for group in groups for site in group.sites if _separable(site)}
    excluded = [pattern for pattern in options.exclude if fitting(pattern, analysis.sites)]
    wished = [
        {pattern: word for pattern, word in words.items() if fitting(pattern, analysis.sites)}
        for words in (options.format_for, options.transform_for)
    ]  # others may name parts to come
    wishes = wishes_of(analysis.sites, target, excluded, *wished)
    sites = [site for site in quantizable(analysis, target)[0] if site.name not in wishes.left_out]
    if len(schemes) == 1 and not options.budget:  # there is nothing to decide, whatever the basis
        options = replace(options, transforms="none", transform_for={})
    choice = choose(
        analysis, sites, target, schemes, options, prepared.seen.data, replace(wishes, separable=separable),
        lambda *_: None, request.progress,
    )  # fmt: skip
    taken = {name: scheme for name, scheme in choice.schemes.items() if isinstance(scheme, Apart)}
    if not taken:
        state.decline("*", what, "within these budgets no site loses less with one")
    for scheme in dict.fromkeys(taken.values()):
        named = [replace(own, sites=[s for s in own.sites if taken.get(s.name) == scheme]) for own in groups]
        run_pass(SplitBranches(named, choice.statistics, scheme.alone, scheme.branch, options.device), state)
    return _analyzed(prepared)


def branch_digests(prepared: Prepared) -> list[str]:
    """Digests of branches, which depend on formats, statistics and decisions, in the order of the graph."""
    thin = (constant(operand(node, 1)).numpy() for node in prepared.model.graph if beside(node))
    return [hashlib.sha256(array.tobytes()).hexdigest() for array in thin]


def store_in_half(model: ir.Model) -> None:
    """Store float32 weights of branches in float16, of which they are read back; those that reach beyond it stay."""
    for node in [node for node in model.graph.all_nodes() if beside(node) and plan_of(node) is None]:
        weight = operand(node, 1)
        if weight.const_value is None or weight.dtype != ir.DataType.FLOAT:
            continue
        whole = constant(weight).numpy()
        if np.abs(whole).max(initial=0) > np.finfo(np.float16).max:
            continue
        half = add_initializer(model, f"{weight.name}_half", whole.astype(np.float16))
        cast = append_node(node, "Cast", [half], {"to": ir.DataType.FLOAT}, name=f"{weight.name}_read", like=weight)
        node.replace_input_with(1, cast.outputs[0])
        del model.graph.initializers[name_of(weight)]
        weight.type = half.type  # the analysis has it still, and so knows how it is stored


def _separable(site: Site) -> bool:
    return operand(site.node, 1) is site.weight and inseparable(site.node) is None and min(site.shape) >= 4


def _groups(prepared: Prepared, request: Request) -> list[Siblings]:
    options, analysis = request.options, prepared.analysis
    sites, _ = quantizable(analysis, request.target)
    out = edge_sites(analysis.model, sites) | wishes_of(sites, request.target, (), {}, {}).left_out.keys()
    left = [*options.exclude, *(pattern for pattern, word in options.format_for.items() if word == "float")]
    out |= {site.name for pattern in left for site in fitting(pattern, sites)}  # some may name parts to come
    own = siblings_of([s for s in sites if s.name not in out and SPLIT not in s.node.metadata_props])
    return [group for group in own if group.patches is None]  # kernels are not split
