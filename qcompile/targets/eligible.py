"""The sites that a target can quantize, and the reasons against the others."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from qcompile.analysis.forms import Stack, read_site
from qcompile.analysis.infinity import infinity
from qcompile.analysis.patches import is_convolution, windowed
from qcompile.analysis.siblings import siblings_of
from qcompile.analysis.spaces import Analysis, Site
from qcompile.analysis.stacks import experts_of, is_stack
from qcompile.errors import InputError, TargetError
from qcompile.ir.blueprint import blueprint_of
from qcompile.ir.functions import DOMAIN, opset
from qcompile.ir.graph import is_float, label
from qcompile.notes import Declined
from qcompile.targets.scheme import Scheme
from qcompile.targets.target import Target

__all__ = ["WEIGHT", "quantizable", "refuse_operators", "refuse_versions", "said_of_weights"]

#: The thing that is not done to a site that is left alone.
WEIGHT = "quantizing its weight"

#: Sites that a message names for one reason.
SHOWN = 3


def quantizable(analysis: Analysis, target: Target | None = None) -> tuple[list[Site], list[Declined]]:
    """The sites that a target can quantize (or some target, if none is named), and the reasons against the others."""
    chosen, declined = [], []
    kinds: dict[ir.Value, set[str]] = defaultdict(set)
    for site in analysis.sites:
        kinds[site.weight].add(site.node.op_type)
    shared = {weight for weight, found in kinds.items() if len(found) > 1}
    readers = Counter(site.weight for site in analysis.sites)
    several = {weight for weight, count in readers.items() if count > 1}
    for site in analysis.sites:
        reason = infinity(analysis, site.input, site.ref_in) or _unsupported(site, shared)
        reason = reason or (target and _beyond(analysis, site, target)) or _entangled(analysis, site, several)
        if reason is None:
            chosen.append(site)
        else:
            declined.append(Declined(site.name, WEIGHT, reason))
    grouped = {id(site) for group in siblings_of(chosen) for site in group.sites}
    for site in chosen:
        if site.input is not None and id(site) not in grouped:
            reason = f"another site reads '{site.input.name}' along another axis"
            declined.append(Declined(site.name, WEIGHT, reason))
    return [site for site in chosen if site.input is None or id(site) in grouped], declined


def refuse_operators(analysis: Analysis, target: Target) -> None:
    """Refuse a graph with operators that a target has no form of, embedding tables among them.

    Raises:
        TargetError: naming some.
    """
    if target.operators is None:
        return
    found: dict[str, str] = {}
    tables = set() if target.tables else {site.node for site in analysis.sites if site.input is None}
    for node in analysis.model.graph.all_nodes():
        computes = any(value is not None and is_float(value) for value in (*node.inputs, *node.outputs))
        lacks = node.domain != DOMAIN and (node.domain or node.op_type not in target.operators)
        if computes and (lacks or node in tables):
            found.setdefault(node.op_type, f"the embedding {label(node)}" if node in tables else label(node))
    if found:
        names = ", ".join(list(found.values())[:SHOWN])
        raise TargetError(f"target '{target.name}' computes in integers alone, and has no integer form of {names}")


def refuse_versions(model: ir.Model, target: Target, schemes: Iterable[Scheme]) -> None:
    """Refuse a graph whose operators are too old for schemes.

    Raises:
        InputError: naming one, and the version that it needs.
    """
    for scheme in schemes:
        needed = target.version_for(scheme)
        if opset(model) < needed:
            raise InputError(
                f"'{scheme.name}' needs operators of version {needed} on target '{target.name}': the graph has "
                f"{opset(model)}, so export it to {needed} or convert it with onnx.version_converter"
            )


def said_of_weights(declined: Iterable[Declined]) -> str:
    """The reasons against weights as the end of a sentence: each once, with the sites that are left alone for it."""
    sites: dict[str, list[str]] = defaultdict(list)
    for entry in declined:
        if entry.what == WEIGHT:
            sites[entry.reason].append(entry.site)
    found = [f"{reason} ({_few(names)})" for reason, names in sites.items()]
    return f": {'; '.join(found)}" if found else ""


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def _beyond(analysis: Analysis, site: Site, target: Target) -> str | None:
    """Why that target in particular cannot compute a site."""
    blueprint = blueprint_of(analysis.model) if target.modules else None
    if blueprint is not None and (site.input is None or site.module not in blueprint.linear):
        return f"target '{target.name}' packs weights of torch.nn.Linear alone"
    if site.input is None and not target.tables:
        return f"target '{target.name}' looks up rows of float tables alone"
    if site.nested and not target.bodies:
        return f"it stands in the body of another operator, where target '{target.name}' computes with float weights"
    if windowed(site.node) and target.convolutions == "none":
        return f"target '{target.name}' computes no convolution but products at each place: no taps, strides or groups"
    if is_stack(site) and target.stacks == "none":
        return f"its weight is a stack of matrices, which target '{target.name}' does not compute"
    if is_stack(site) and target.stacks == "matrices":
        try:
            if isinstance(form := read_site(site.node), Stack):  # a stack of one matrix is a matrix
                experts_of(form)
        except TargetError as error:
            return str(error)
    return None


def _entangled(analysis: Analysis, site: Site, several: set[ir.Value]) -> str | None:
    """Why the weight of a stack cannot be replaced by a packed one."""
    if not is_stack(site):
        return None
    if analysis.refs(site.input)[-1] is not site.ref_in:
        return "the features that it reads are not along the last axis"
    return "several operators read its stack of weights" if site.weight in several else None


def _unsupported(site: Site, shared: set[ir.Value]) -> str | None:
    node = site.node
    if site.weight in shared:
        return "its weight is shared with an operator of another kind"
    if site.input is not None and site.input.shape is None:
        return f"the rank of '{site.input.name}', which it reads, is not known"
    if is_stack(site):
        return None
    if node.op_type in ("MatMul", "Gemm") and node.domain == "":
        if node.inputs[1] is not site.weight:
            return "its weight is the left operand"
        return "its first operand is transposed" if node.attributes.get_int("transA", 0) else None
    if node.op_type == "Gather":
        return None if site.axis_in == 0 else "the table is not looked up by rows"
    if is_convolution(node):
        return None
    return f"{node.op_type} is not computed with quantized weights"
