"""All that comes before choices: capture, canonicalize, fold norms, analyze, and which sites can be quantized."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from qcompile.analysis.boundaries import with_boundaries
from qcompile.analysis.forms import read_site
from qcompile.analysis.siblings import groups_of
from qcompile.analysis.spaces import Analysis, Site, analyze
from qcompile.analysis.stacks import experts_of
from qcompile.errors import InputError, TargetError
from qcompile.ir.capture import Source, begin_capture
from qcompile.ir.graph import release
from qcompile.passes.index import load_pass
from qcompile.passes.pipeline import Pipeline, State

if TYPE_CHECKING:
    from qcompile.statistics.calibration import Progress
    from qcompile.targets.registry import Target

__all__ = ["Prepared", "edge_sites", "prepare", "quantizable"]


@dataclass
class Prepared:
    """A captured model, canonical and with its norms folded, analyzed.

    ``outputs`` keeps what the source computed for the first batches, by identity of the batch.
    """

    source: Source
    state: State
    analysis: Analysis
    outputs: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)

    @property
    def model(self) -> ir.Model:
        """The graph."""
        return self.state.model

    def release_source(self) -> None:
        """Let go of the pages of the source's weights; they are mapped again where something still needs them."""
        for value in self.source.model.graph.initializers.values():
            if value.const_value is not None:
                release(value.const_value)


def prepare(model: Any, progress: Progress | None = None, **capture_options: Any) -> Prepared:
    """Everything that comes before choices: capture, canonicalize, fold norms, analyze."""
    source = begin_capture(model, **capture_options)
    state = State(source.model.clone())
    if source.widened:
        reason = "onnxruntime has no such operators on a CPU: the graph computes in float32, its inputs and outputs too"
        state.decline("*", "computing in bfloat16", reason)
    names = ("canonicalize", "fold-tables", "fold-shifts", "fold-scales", "center-norms")
    steps = [load_pass(name)() for name in names]

    def tell(step: Any, _state: State, _following: Any) -> None:
        if progress is not None:
            progress(step.name, 1, 1)

    Pipeline(steps, tell).apply(state)
    source.check()
    return Prepared(source, state, with_boundaries(analyze(state.model)))


def quantizable(prepared: Prepared, target: Target | None = None) -> list[Site]:
    """Sites that a target can quantize, or some target if none is named; the others are declined with their reason."""
    chosen = []
    kinds: dict[ir.Value, set[str]] = defaultdict(set)
    for site in prepared.analysis.sites:
        kinds[site.weight].add(site.node.op_type)
    shared = {weight for weight, found in kinds.items() if len(found) > 1}
    readers = Counter(site.weight for site in prepared.analysis.sites)
    several = {weight for weight, count in readers.items() if count > 1}
    for site in prepared.analysis.sites:
        if not prepared.source.finite and not np.isfinite(site.weight.const_value.numpy()).all():
            raise InputError(f"weight '{site.weight.name}' of '{prepared.source.path}' holds infinity")
        reason = _unsupported(site, shared) or (target and _beyond(site, target)) or _entangled(prepared, site, several)
        if reason is None:
            chosen.append(site)
        else:
            prepared.state.decline(site.name, "quantizing its weight", reason)
    grouped = {id(site) for group in groups_of(chosen) for site in group.sites}
    for site in chosen:
        if site.input is not None and id(site) not in grouped:
            reason = f"another site reads '{site.input.name}' along another axis"
            prepared.state.decline(site.name, "quantizing its weight", reason)
    return [site for site in chosen if site.input is None or id(site) in grouped]


def _beyond(site: Site, target: Target) -> str | None:
    """Why that target in particular cannot compute a site."""
    if site.nested and not target.bodies:
        return f"it stands in the body of another operator, where target '{target.name}' computes with float weights"
    if is_stack(site) and target.stacks == "none":
        return f"its weight is a stack of matrices, which target '{target.name}' does not compute"
    if is_stack(site) and target.stacks == "matrices":
        try:
            experts_of(read_site(site.node))
        except TargetError as error:
            return str(error)
    return None


def _entangled(prepared: Prepared, site: Site, several: set[ir.Value]) -> str | None:
    """Why the weight of a stack cannot be replaced by a packed one."""
    if not is_stack(site):
        return None
    if prepared.analysis.refs(site.input)[-1] is not site.ref_in:
        return "the features that it reads are not along the last axis"
    return "several operators read its stack of weights" if site.weight in several else None


def is_stack(site: Site) -> bool:
    """Whether a site is a product with the matrices of a stack, or with what is looked up in one."""
    return site.node.op_type in ("MatMul", "Einsum") and (len(site.shape) != 2 or site.node.op_type == "Einsum")


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
    if node.op_type == "Conv":
        kernel = [int(n) for n in site.shape[2:]]
        plain = all(n == 1 for n in kernel + list(node.attributes.get_ints("strides", [1])))
        plain = plain and not any(node.attributes.get_ints("pads", [0]))
        size = "x".join(map(str, kernel))
        return None if plain else f"convolutions with a {size} kernel or stride keep their weights"
    return f"{node.op_type} is not computed with quantized weights"


def edge_sites(prepared: Prepared, sites: Sequence[Site]) -> set[str]:
    """Sites at the edges of the model: embedding tables, and what writes an output of the graph directly."""
    outputs = set(prepared.model.graph.outputs)
    return {site.name for site in sites if site.input is None or outputs & _written(site.node.outputs[0])}


def _written(value: ir.Value) -> set[ir.Value]:
    """The value and what elementwise operators with constants, casts and reshapes make of it."""
    found, queue = set(), [value]
    while queue:
        value = queue.pop()
        if value in found:
            continue
        found.add(value)
        for node, _ in value.uses():
            others = [v for v in node.inputs if v is not None and v is not value and v.const_value is None]
            if not others and node.op_type in ("Add", "Cast", "Reshape", "Mul", "Div", "Tanh", "Softmax", "Squeeze"):
                queue.extend(node.outputs)
    return found
