"""State-space operators that export: Mamba's selective scan and Mamba-2's state space duality.

A module that calls ``selective_scan`` or ``state_space_duality`` exports to one node of the domain ``qcompile`` each,
of dynamic batch and length; ``qcompile.ir.capture`` brings the translation along. The node carries a function body of
standard operators around one ONNX ``Scan``, so any runtime runs it; backends may have a kernel for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from qcompile.errors import InputError
from qcompile.ir.functions import DOMAIN, ensure_function

__all__ = ["add_bodies", "duality", "scan", "selective_scan", "state_space_duality", "translations"]

#: Steps whose decays are computed at once: memory grows with it, and the calls of small operators shrink.
SCAN_CHUNK = 64

#: Steps of one quadratic block of the dual form.
DUAL_CHUNK = 64


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The selective scan of Mamba (Gu and Dao, 2023, algorithm 2), from a state of zeros.

    ``h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t``, ``y_t = C_t h_t + D u_t``, computed in the type of its inputs.

    Args:
        u: ``[batch, length, channels]``.
        delta: step sizes, already behind softplus, ``[batch, length, channels]``.
        A: ``[channels, state]``, negative.
        B: ``[batch, length, state]``.
        C: ``[batch, length, state]``.
        D: ``[channels]``.

    Returns:
        ``[batch, length, channels]``.

    Raises:
        InputError: if the shapes do not fit together.
    """
    named = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D}
    _check(named, {"u": "blc", "delta": "blc", "A": "cn", "B": "bln", "C": "bln", "D": "c"})
    return torch.ops.qcompile.selective_scan(u, delta, A, B, C, D)


def state_space_duality(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Mamba-2's state-space layer (Dao and Gu, 2024): one decay per head and step, from a state of zeros.

    ``H_t = exp(delta_t A) H_{t-1} + delta_t x_t B_tᵀ``, ``y_t = H_t C_t + D x_t`` for each head; a group of
    consecutive heads shares ``B`` and ``C``. Computed in the type of its inputs.

    Args:
        x: ``[batch, length, heads, head_dim]``.
        delta: step sizes, already behind softplus, ``[batch, length, heads]``.
        A: ``[heads]``, negative.
        B: ``[batch, length, groups, state]``; ``groups`` divides ``heads``.
        C: ``[batch, length, groups, state]``.
        D: ``[heads]``.

    Returns:
        ``[batch, length, heads, head_dim]``.

    Raises:
        InputError: if the shapes do not fit together.
    """
    named = {"x": x, "delta": delta, "A": A, "B": B, "C": C, "D": D}
    _check(named, {"x": "blhp", "delta": "blh", "A": "h", "B": "blgn", "C": "blgn", "D": "h"})
    if x.shape[2] % B.shape[2]:
        raise InputError(f"{x.shape[2]} heads cannot share {B.shape[2]} groups of B and C")
    return torch.ops.qcompile.state_space_duality(x, delta, A, B, C, D)


def _check(tensors: Mapping[str, Tensor], letters: Mapping[str, str]) -> None:
    sizes: dict[str, tuple[Any, str]] = {}
    for name, axes in letters.items():
        if tensors[name].dim() != len(axes):
            raise InputError(f"{name} has {tensors[name].dim()} axes, not {len(axes)}")
        for axis, letter in enumerate(axes):
            size, other = sizes.setdefault(letter, (tensors[name].shape[axis], name))
            if size != tensors[name].shape[axis]:
                raise InputError(f"axis {axis} of {name} has size {tensors[name].shape[axis]}, but {other} says {size}")


# -- computed by torch -------------------------------------------------------------------------------------------


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """``selective_scan`` by plain operators of torch, all of them differentiable."""
    state = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    pieces = [u.new_zeros(u.shape[0], 0, u.shape[2])]
    for start in range(0, u.shape[1], SCAN_CHUNK):
        at = slice(start, start + SCAN_CHUNK)
        decay = torch.exp(delta[:, at, :, None] * A).unbind(1)
        drive = ((delta[:, at] * u[:, at])[..., None] * B[:, at, None, :]).unbind(1)
        states = []
        for kept, added in zip(decay, drive, strict=True):
            state = torch.addcmul(added, kept, state)
            states.append(state)
        pieces.append((torch.stack(states, 1) @ C[:, at, :, None]).squeeze(-1))
    return torch.cat(pieces, 1) + D * u


def duality(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """``state_space_duality`` by plain operators of torch, all of them differentiable."""
    batch, length, heads, width = x.shape
    repeat, rest = heads // B.shape[2], -length % DUAL_CHUNK
    B, C = (m.repeat_interleave(repeat, 2) for m in (B, C))

    def cut(value: Tensor) -> Tensor:  # [batch, chunks, heads, steps, ...]; a step size of zero changes nothing
        padded = F.pad(value, [0, 0] * (value.dim() - 2) + [0, rest])
        return padded.unflatten(1, (-1, DUAL_CHUNK)).transpose(2, 3)

    drive, b, c = cut(x * delta[..., None]), cut(B), cut(C)
    rate = cut(delta * A)
    passed = rate.cumsum(-1)  # log of the decay since the start of the chunk
    later = torch.ones(DUAL_CHUNK, DUAL_CHUNK, dtype=torch.bool, device=x.device).tril(-1)
    # Sums of their own between any two steps, because differences of long sums cancel.
    between = rate[..., None].masked_fill(~later, 0).cumsum(-2).masked_fill(later.mT, -torch.inf).exp()
    within = (c @ b.mT * between) @ drive
    left = (drive * between[..., -1, :, None]).mT @ b  # what each chunk adds, [..., width, state]
    state, before = torch.zeros_like(left[:, 0]), []
    for chunk in range(left.shape[1]):
        before.append(state)
        state = passed[:, chunk, :, -1, None, None].exp() * state + left[:, chunk]
    carried = passed.exp()[..., None] * (c @ torch.stack(before, 1).mT) if before else within
    y = (within + carried).transpose(2, 3).reshape(batch, length + rest, heads, width)
    return y[:, :length] + D[:, None] * x


def _define(name: str, function: Callable[..., Tensor]) -> None:
    """Register ``qcompile::name``: differentiable, opaque to ``torch.export``, shaped like its first input."""

    def compute(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        return function(u, delta, A, B, C, D)

    def differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            return torch.autograd.grad(function(*inputs), inputs, gradient)

    op = torch.library.custom_op(f"{DOMAIN}::{name}", compute, mutates_args=())
    op.register_fake(lambda u, *_: torch.empty_like(u, memory_format=torch.contiguous_format))
    op.register_autograd(differentiate, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


_define("selective_scan", scan)
_define("state_space_duality", duality)


# -- exported to ONNX --------------------------------------------------------------------------------------------

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


_TRANSLATED = {"selective_scan": "SelectiveScan", "state_space_duality": "StateSpaceDuality"}


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The ``custom_translation_table`` for ``torch.onnx.export``; give its result to ``add_bodies``."""
    from onnxscript.values import Op, Opset

    def translation(op: Op) -> Callable[..., Any]:
        def translate(u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any) -> Any:
            return op(u, delta, A, B, C, D)

        return translate

    ours = Opset(DOMAIN, 1)
    ops = {name: Op(ours, op, _schema(op)) for name, op in _TRANSLATED.items()}
    return {getattr(torch.ops.qcompile, name).default: translation(op) for name, op in ops.items()}


def _schema(op: str) -> onnx.defs.OpSchema:
    """The schema of an operator for the exporter: the names of its inputs, all of one type."""
    parameter = onnx.defs.OpSchema.FormalParameter
    signature = _BODIES[op].split("=>")[0].strip(" ()").split(", ")
    floats = [f"tensor({name})" for name in ("float16", "bfloat16", "float", "double")]
    inputs, outputs = ([parameter(name, "T") for name in names] for names in (signature, ["y"]))
    return onnx.defs.OpSchema(op, DOMAIN, 1, inputs=inputs, outputs=outputs, type_constraints=[("T", floats, "")])


def add_bodies(model: ir.Model) -> None:
    """Give a graph the function of every state-space node in it."""
    for node in model.graph.all_nodes():
        if node.domain == DOMAIN and node.op_type in _BODIES:
            ensure_function(model, node.op_type, _BODIES[node.op_type])
