"""The one matrix that a transform repeats along an axis, where it does: what formats of checkpoints can hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qcompile.transforms.steps import Step, apply_steps, to_dtype

__all__ = ["MOST", "shared_block"]

#: Features of the largest block that is worth a matrix of its own beside a weight.
MOST = 1024


def shared_block(steps: Sequence[Step]) -> torch.Tensor | None:
    """The matrix ``M`` of ``T = I ⊗ M``, float64 ``[block, block]``, the smallest that steps show.

    Args:
        steps: as ``Transform.factors`` gives them.

    Returns:
        ``None`` where blocks differ, as those that are fitted one by one do.
    """
    size = max(_size(step) for step in steps)
    for block in (size // count for count in range(size, 0, -1) if size % count == 0):
        parts = [_part(step, size, block) for step in steps]
        if all(part is not None for part in parts):
            made = to_dtype([part for part in parts if part is not None], torch.float64, torch.device("cpu"))
            return apply_steps(torch.eye(block, dtype=torch.float64), made, 0)
    return None


def _size(step: Step) -> int:
    outer, inner, matrix = step
    return matrix.shape[-1] if matrix.ndim == 1 else outer * matrix.shape[-1] * inner


def _part(step: Step, size: int, block: int) -> Step | None:
    """The step on the first block, if all blocks have the same."""
    outer, inner, matrix = step
    if matrix.ndim == 1:
        parts = matrix.view(-1, block)
        if not matrix.is_floating_point():
            parts = parts - torch.arange(len(parts))[:, None] * block  # places within the block
        return (1, 1, parts[0]) if bool((parts == parts[0]).all()) and _within(parts[0], block) else None
    width = matrix.shape[-1] * inner
    if block % width:
        return None
    count = block // width
    if matrix.ndim == 2:
        return count, inner, matrix
    stacks = matrix.view(-1, count, *matrix.shape[1:])
    return (count, inner, stacks[0]) if bool((stacks == stacks[0]).all()) else None


def _within(places: torch.Tensor, block: int) -> bool:
    return places.is_floating_point() or bool(((places >= 0) & (places < block)).all())
