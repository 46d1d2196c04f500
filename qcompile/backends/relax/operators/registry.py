"""Where operators register: a function of the builder, the node and its inputs that returns its outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from qcompile.errors import TargetError
from qcompile.ir.text import refusal

__all__ = ["OPERATORS", "operator", "refuse"]

#: By (domain, operator): ``(builder, node, *inputs) -> output or list of outputs``.
OPERATORS: dict[tuple[str, str], Callable[..., Any]] = {}


def operator(*names: str, domain: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function for some operators."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        OPERATORS.update({(domain, name): function for name in names})
        return function

    return register


def refuse(node: ir.Node, reason: str) -> TargetError:
    """The error for a node that cannot be lowered."""
    return refusal(TargetError, "TVM: operator {op} of node '{name}' cannot be lowered: {reason}", node, reason=reason)
