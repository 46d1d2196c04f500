"""State-space operators: what the recurrence over time leaves of channels, of heads and of the hidden state."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.analysis.axes import Ref
from qcompile.analysis.rules.elementwise import carry
from qcompile.analysis.rules.linear import contract
from qcompile.analysis.spaces import Analysis, rule
from qcompile.ir.functions import DOMAIN
from qcompile.ir.graph import label
from qcompile.transforms.freedom import Freedom

__all__ = ["selective_scan", "state_space_duality"]


def _places(analysis: Analysis, node: ir.Node, operands: list[list[Ref]]) -> None:
    """Join what the operands have in common, batch and time; time stays in its order."""
    for refs in operands[1:]:
        analysis.axes.unify(operands[0][0], refs[0], f"{label(node)} treats each sequence by itself")
        analysis.axes.unify(operands[0][1], refs[1], f"{label(node)} steps through time")
    analysis.axes.constrain(operands[0][0], Freedom.PERMUTATION, f"{label(node)} treats each sequence by itself")
    analysis.axes.constrain(operands[0][1], Freedom.NONE, f"{label(node)} steps through time")


def _state(analysis: Analysis, node: ir.Node, held: list[list[Ref]], like: list[Ref]) -> None:
    """A state is in the basis of what is added to it, before the first step and behind the last."""
    for refs in held:
        for own, other in zip(refs, like, strict=True):
            analysis.axes.unify(other, own, f"{label(node)} goes on from a state")
        analysis.set(node.outputs[1], like)


@rule("SelectiveScan", domain=DOMAIN)
@rule("SelectiveScanWithState", domain=DOMAIN)
def selective_scan(analysis: Analysis, node: ir.Node) -> None:
    """``h = exp(δA) h + δBu``, ``y = Ch + Du``: given δ and A, linear from u to y and at each state between B and C."""
    u, delta, a, b, c, d, *held = (list(analysis.refs(value)) for value in node.inputs)
    _places(analysis, node, [u, delta, b, c])
    for decided in (delta[2], a[0], d[0]):
        carry(analysis, u[2], decided, label(node))
    contract(analysis, b[2], c[2], label(node))
    carry(analysis, b[2], a[1], label(node))
    _state(analysis, node, held, [u[0], u[2], b[2]])
    analysis.set(node.outputs[0], u)


@rule("StateSpaceDuality", domain=DOMAIN)
@rule("StateSpaceDualityWithState", domain=DOMAIN)
def state_space_duality(analysis: Analysis, node: ir.Node) -> None:
    """``H = exp(δA) H + δxBᵀ``, ``y = HC + Dx``, one δ and A for a head: its channels and its state are linear."""
    x, delta, a, b, c, d, *held = (list(analysis.refs(value)) for value in node.inputs)
    _places(analysis, node, [x, delta, b, c])
    heads, groups = analysis.axes.size(x[2]), analysis.axes.size(b[2])
    parts = analysis.axes.as_product(x[2], [groups, heads // groups], label(node)) if heads and groups else None
    if not parts or groups is None:
        analysis.opaque(node, f"{label(node)} has heads that cannot be followed")
        return
    for decided in (delta[2], a[0], d[0]):
        carry(analysis, x[2], decided, label(node))
    for shared in (b[2], c[2]):
        if groups > 1:
            carry(analysis, parts[0], shared, label(node))
    contract(analysis, b[3], c[3], label(node))
    _state(analysis, node, held, [x[0], x[2], x[3], b[3]])
    analysis.set(node.outputs[0], x)
