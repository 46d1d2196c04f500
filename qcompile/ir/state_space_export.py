"""State-space operators as nodes of a graph, each with a function of standard operators, and their translation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir
import torch

from qcompile.ir import state_space  # noqa: F401  (registers the operators)
from qcompile.ir.functions import DOMAIN, ensure_function

__all__ = ["add_bodies", "translations"]

#: The axis of time goes first, because not every runtime scans another one.
_BODIES = {
    "SelectiveScan": """(u, delta, A, B, C, D) => (y) {
        batch = Shape <start = 0, end = 1> (u)
        sizes = Shape (A)
        shape = Concat <axis = 0> (batch, sizes)
        zeros = ConstantOfShape (shape)
        initial = CastLike (zeros, u)
        one = Constant <value = int64[1] {1}> ()
        two = Constant <value = int64[1] {2}> ()
        u_first = Transpose <perm = [1, 0, 2]> (u)
        delta_first = Transpose <perm = [1, 0, 2]> (delta)
        B_first = Transpose <perm = [1, 0, 2]> (B)
        C_first = Transpose <perm = [1, 0, 2]> (C)
        final, y_first = Scan <num_scan_inputs = 4, body = step (h, u_t, delta_t, B_t, C_t) => (h_next, y_t) {
                column = Unsqueeze (delta_t, two)
                rate = Mul (column, A)
                decay = Exp (rate)
                kept = Mul (decay, h)
                driven = Mul (delta_t, u_t)
                driven_column = Unsqueeze (driven, two)
                row = Unsqueeze (B_t, one)
                added = Mul (driven_column, row)
                h_next = Add (kept, added)
                readout = Unsqueeze (C_t, two)
                y_column = MatMul (h_next, readout)
                y_t = Squeeze (y_column, two)
            }> (initial, u_first, delta_first, B_first, C_first)
        mixed = Transpose <perm = [1, 0, 2]> (y_first)
        skipped = Mul (D, u)
        y = Add (mixed, skipped)
    }""",
    # Heads stand as [groups, heads of a group], so that B and C broadcast over the heads of their group.
    "StateSpaceDuality": """(x, delta, A, B, C, D) => (y) {
        batch = Shape <start = 0, end = 1> (x)
        width = Shape <start = 3, end = 4> (x)
        groups = Shape <start = 2, end = 3> (B)
        state = Shape <start = 3, end = 4> (B)
        rest = Constant <value = int64[1] {-1}> ()
        keep = Constant <value = int64[2] {0, 0}> ()
        by_group = Concat <axis = 0> (groups, rest)
        delta_shape = Concat <axis = 0> (keep, by_group)
        x_shape = Concat <axis = 0> (delta_shape, width)
        x_grouped = Reshape (x, x_shape)
        delta_grouped = Reshape (delta, delta_shape)
        A_grouped = Reshape (A, by_group)
        heads = Shape <start = 1, end = 2> (A_grouped)
        shape = Concat <axis = 0> (batch, groups, heads, width, state)
        zeros = ConstantOfShape (shape)
        initial = CastLike (zeros, x)
        last = Constant <value = int64[1] {-1}> ()
        both = Constant <value = int64[2] {-2, -1}> ()
        outer = Constant <value = int64[2] {2, 3}> ()
        inner = Constant <value = int64[2] {2, 4}> ()
        x_first = Transpose <perm = [1, 0, 2, 3, 4]> (x_grouped)
        delta_first = Transpose <perm = [1, 0, 2, 3]> (delta_grouped)
        B_first = Transpose <perm = [1, 0, 2, 3]> (B)
        C_first = Transpose <perm = [1, 0, 2, 3]> (C)
        final, y_first = Scan <num_scan_inputs = 4, body = step (h, x_t, delta_t, B_t, C_t) => (h_next, y_t) {
                rate = Mul (delta_t, A_grouped)
                decay = Exp (rate)
                decay_wide = Unsqueeze (decay, both)
                kept = Mul (decay_wide, h)
                delta_column = Unsqueeze (delta_t, last)
                driven = Mul (delta_column, x_t)
                driven_column = Unsqueeze (driven, last)
                row = Unsqueeze (B_t, outer)
                added = Mul (driven_column, row)
                h_next = Add (kept, added)
                readout = Unsqueeze (C_t, inner)
                y_column = MatMul (h_next, readout)
                y_t = Squeeze (y_column, last)
            }> (initial, x_first, delta_first, B_first, C_first)
        mixed = Transpose <perm = [1, 0, 2, 3, 4]> (y_first)
        like = Shape (x)
        merged = Reshape (mixed, like)
        D_column = Unsqueeze (D, last)
        skipped = Mul (D_column, x)
        y = Add (merged, skipped)
    }""",
}


#: Behind the name of an operator, that it takes a state and returns one.
WITH_STATE = "WithState"


def _with_state(body: str, given: str, gone: tuple[str, ...], last: str) -> str:
    """A body whose state is an input in the place of zeros, and its last one a result.

    Args:
        given: statements that make ``initial`` of ``state``.
        gone: names that zeros were made of.
        last: statements that make ``state_out`` of ``final``.
    """
    signature, _, rest = body.partition("{")
    lines = []
    for line in rest.splitlines():
        name = line.strip().partition(" ")[0]
        lines += [given] if name == "initial" else [] if name in gone else [line]
    inner, end, _ = "\n".join(lines).rpartition("}")
    signature = signature.replace("D)", "D, state)").replace("(y)", "(y, state_out)")
    return f"{signature}{{{inner}{last}\n{end}"


_BODIES["SelectiveScan" + WITH_STATE] = _with_state(
    _BODIES["SelectiveScan"], "initial = Identity (state)", ("batch", "sizes", "shape", "zeros"),
    "state_out = Identity (final)",
)  # fmt: skip
_BODIES["StateSpaceDuality" + WITH_STATE] = _with_state(
    _BODIES["StateSpaceDuality"],
    "tail = Shape <start = 2, end = 4> (state) shape = Concat <axis = 0> (batch, by_group, tail) "
    "initial = Reshape (state, shape)",
    ("state", "heads", "shape", "zeros"), "whole = Shape (state) state_out = Reshape (final, whole)",
)  # fmt: skip

_TRANSLATED = {"selective_scan": "SelectiveScan", "state_space_duality": "StateSpaceDuality"}
_TRANSLATED |= {f"{name}_with_state": op + WITH_STATE for name, op in _TRANSLATED.items()}


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The ``custom_translation_table`` for ``torch.onnx.export``; give its result to ``add_bodies``."""
    from onnxscript.values import Op, Opset

    def translation(op: Op) -> Callable[..., Any]:
        def translate(u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any) -> Any:
            return op(u, delta, A, B, C, D)

        def translate_with_state(u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, state: Any) -> Any:
            return op(u, delta, A, B, C, D, state)

        return translate_with_state if op.name.endswith(WITH_STATE) else translate

    ours = Opset(DOMAIN, 1)
    ops = {name: Op(ours, op, _schema(op)) for name, op in _TRANSLATED.items()}
    return {getattr(torch.ops.qcompile, name).default: translation(op) for name, op in ops.items()}


def _schema(op: str) -> onnx.defs.OpSchema:
    """The schema of an operator for the exporter: the names of its inputs, all of one type."""
    parameter = onnx.defs.OpSchema.FormalParameter
    signature, results = (part.strip(" ()").split(", ") for part in _BODIES[op].partition("{")[0].split("=>"))
    floats = [f"tensor({name})" for name in ("float16", "bfloat16", "float", "double")]
    inputs, outputs = ([parameter(name, "T") for name in names] for names in (signature, results))
    return onnx.defs.OpSchema(op, DOMAIN, 1, inputs=inputs, outputs=outputs, type_constraints=[("T", floats, "")])


def add_bodies(model: ir.Model) -> None:
    """Give a graph the function of every state-space node in it."""
    for node in model.graph.all_nodes():
        if node.domain == DOMAIN and node.op_type in _BODIES:
            ensure_function(model, node.op_type, _BODIES[node.op_type])
