"""Running a transform as a chain of small steps, in pieces that stay in the processor's cache.

A step is what ``Transform.factors`` returns, ``(outer, inner, M)``: the axis is seen as ``[outer, m, inner]`` and

* an ``m x m`` matrix ``M`` is multiplied along the middle;
* a ``[outer, m, m]`` stack does so with a matrix of its own for every outer index (a block-diagonal matrix);
* a floating-point vector of length ``size`` multiplies elementwise (a diagonal);
* an integer vector of length ``size`` gathers: ``y[i] = x[M[i]]`` (a permutation).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qcompile.errors import InputError

__all__ = ["Step", "apply_steps", "check_axis", "embed", "to_dtype"]

Step = tuple[int, int, torch.Tensor]

_CHUNK = 1 << 18  # elements worked on at once, 1 MiB: in the cache of a core; two such buffers are all extra memory
_DEVICE_CHUNK = 1 << 26  # on an accelerator
_MIN_COLUMNS = 64  # of a strided piece: whole cache lines


def check_axis(x: torch.Tensor, size: int, axis: int, kind: str) -> int:
    """The axis as a non-negative number, or InputError if it is missing, of the wrong size or not real."""
    if not -x.ndim <= axis < x.ndim:
        raise InputError(f"{kind} transform: axis {axis} is not in a tensor of shape {list(x.shape)}")
    if x.shape[axis] != size:
        raise InputError(f"{kind} transform of size {size} does not fit axis {axis} of shape {list(x.shape)}")
    if not x.dtype.is_floating_point:
        raise InputError(f"{kind} transform needs floating-point values, not {x.dtype}")
    return axis % x.ndim


def to_dtype(steps: Sequence[Step], dtype: torch.dtype, device: torch.device) -> list[Step]:
    """The same steps with their values in ``dtype`` on ``device``; index vectors keep theirs."""
    return [(o, i, m.to(device, dtype if m.is_floating_point() else None)) for o, i, m in steps]


def embed(step: Step, outer: int, inner: int) -> Step:
    """The step of ``I_outer ⊗ T ⊗ I_inner``, from a step of ``T``."""
    o, i, m = step
    if m.ndim == 1 and m.is_floating_point():
        return 1, 1, m.repeat_interleave(inner).repeat(outer)
    if m.ndim == 1:
        index = torch.arange(outer * m.numel() * inner, device=m.device).view(outer, m.numel(), inner)
        return 1, 1, index[:, m].reshape(-1)
    return o * outer, i * inner, m.repeat(outer, 1, 1) if m.ndim == 3 else m


def apply_steps(x: torch.Tensor, steps: Sequence[Step], axis: int, in_place: bool = False) -> torch.Tensor:
    """``x`` with all steps applied along ``axis`` (non-negative, checked); same shape, dtype and device.

    ``steps`` are in the dtype and on the device of ``x``. Under autograd it is differentiable in ``x``. In place
    (``x`` contiguous) the extra memory is two pieces of ``_CHUNK`` elements.
    """
    if not steps or x.numel() == 0:
        return x.clone()
    size = x.shape[axis]
    post = x.shape[axis + 1 :].numel()
    view = x.reshape(-1, size, post)
    if torch.is_grad_enabled() and (x.requires_grad or any(m.requires_grad for _, _, m in steps)):
        return _chain(view.contiguous(), steps).reshape(x.shape)
    out = view if in_place else torch.empty_like(view)
    pieces = _pieces(view)
    buffers = [torch.empty_like(view[pieces[0]]).flatten() for _ in range(min(2, len(steps)))]
    for piece in pieces:
        _run_piece(view[piece], out[piece], steps, buffers)
    return out.reshape(x.shape)


def _pieces(view: torch.Tensor) -> list[tuple[slice, slice, slice]]:
    """Slices that cut the first and last axis into pieces of about ``_CHUNK`` elements; no piece exceeds the first."""
    count, size, post = view.shape
    chunk = _CHUNK if view.device.type == "cpu" else _DEVICE_CHUNK
    rows = max(1, chunk // (size * post))
    columns = post if rows > 1 or post == 1 else min(post, max(_MIN_COLUMNS, chunk // size))
    cuts = [(r, c) for r in range(0, count, rows) for c in range(0, post, columns)]
    return [(slice(r, r + rows), slice(None), slice(c, c + columns)) for r, c in cuts]


def _run_piece(
    piece: torch.Tensor, target: torch.Tensor, steps: Sequence[Step], buffers: Sequence[torch.Tensor]
) -> None:
    """All steps on one piece, through two buffers, the last one straight into ``target`` if it is contiguous."""
    source = piece.contiguous()
    free = [buffer[: source.numel()].view(source.shape) for buffer in buffers]
    # A diagonal first is multiplied in place where the piece may be written over and two more steps lead back to it.
    in_place = source is not piece or piece.data_ptr() == target.data_ptr()
    if in_place and len(steps) > 2 and steps[0][2].ndim == 1 and steps[0][2].is_floating_point():
        source, steps = source.mul_(steps[0][2][:, None]), steps[1:]
    for i, step in enumerate(steps):
        last = i == len(steps) - 1 and target.is_contiguous() and source.data_ptr() != target.data_ptr()
        goal = target if last else free[i % 2]
        _step(source, step, goal)
        source = goal
    if source.data_ptr() != target.data_ptr():
        target.copy_(source)


def _chain(x: torch.Tensor, steps: Sequence[Step]) -> torch.Tensor:
    for step in steps:
        x = _step(x, step, None)
    return x


def _step(x: torch.Tensor, step: Step, out: torch.Tensor | None) -> torch.Tensor:
    """One step on a contiguous ``[rows, size, post]``, into ``out`` if given (contiguous, not ``x``)."""
    outer, inner, m = step
    rows, _, post = x.shape
    if m.ndim == 1:
        if not m.is_floating_point():
            return torch.index_select(x, 1, m, out=out)
        return torch.mul(x, m[:, None], out=out)
    if m.ndim == 3:
        if inner * post == 1:  # a product for each block, not one for each block of each row
            parts = torch.bmm(x.view(rows, outer, m.shape[1]).transpose(0, 1), m.mT)
            result = parts.transpose(0, 1)
        else:
            result = torch.matmul(m, x.view(rows, outer, m.shape[1], inner * post))
        return result.reshape(x.shape) if out is None else out.view(result.shape).copy_(result).view(x.shape)
    return _matrix_step(x, m, inner * post, out)


def _matrix_step(x: torch.Tensor, m: torch.Tensor, inner: int, out: torch.Tensor | None) -> torch.Tensor:
    """``M`` along the middle of ``[-1, m, inner]``, as the kind of product that BLAS runs best."""
    n = m.shape[0]
    shape: Sequence[int]
    if inner == 1:
        left, right, shape = x.view(-1, n), m.T, (-1, n)
    elif x.numel() == n * inner:
        left, right, shape = m, x.view(n, inner), (n, inner)
    else:
        right = x.view(-1, n, inner)
        left, shape = m.expand(right.shape[0], n, n), right.shape
    product = torch.bmm if right.ndim == 3 else torch.mm
    goal = None if out is None else out.view(shape)
    return product(left, right, out=goal).view(x.shape)
