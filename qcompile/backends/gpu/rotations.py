"""Which transforms the fused kernel takes, and in what form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

__all__ = ["plan_transform"]

_WIDEST = 256  # of one factor
_LARGEST = 32768  # values of a padded row, which a program holds in registers


def plan_transform(
    steps: Sequence[tuple[int, int, np.ndarray]], size: int
) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Tensors and description for ``kernels.rotate``, or nothing and None for steps of another form.

    That form is a diagonal, a matrix ``left`` along the slow and ``right`` along the fast part of the axis, and a
    diagonal, each of which may be missing, but not both matrices.
    """
    kinds = ["v" if m.ndim == 1 and m.dtype.kind == "f" else "m" if m.ndim == 2 else "?" for _, _, m in steps]
    order = "".join(kinds)
    if order.strip("v") not in ("m", "mm") or len(order) - len(order.lstrip("v")) > 1 or order.endswith("vv"):
        return {}, None
    matrices = [step for step, kind in zip(steps, kinds, strict=True) if kind == "m"]
    split = _split(matrices, size)
    if split is None:
        return {}, None
    tensors = {}
    if kinds[0] == "v":
        tensors["before"] = steps[0][2].astype(np.float32)
    if kinds[-1] == "v":
        tensors["after"] = steps[-1][2].astype(np.float32)
    left, right, left_size, right_size = split
    before = tensors.get("before")
    repeats = before is not None and (before.reshape(-1, right_size) == before[:right_size]).all()
    if left is None and right is not None and repeats:
        right = right * tensors.pop("before")[:right_size]  # the same in every block: into the matrix
    factor, exact = 1.0, True
    for name, matrix in (("left", left), ("right", right)):
        if matrix is not None:
            tensors[name], part, fits = _normalized(matrix)
            factor, exact = factor * part, exact and fits
    if not exact:  # both as they are, then, in float32
        factor = 1.0
        tensors |= {
            k: np.ascontiguousarray(m, np.float32) for k, m in (("left", left), ("right", right)) if m is not None
        }
    packs = right_size % 32 == 0 and right_size & (right_size - 1) == 0
    if "before" in tensors and packs and np.all(np.abs(tensors["before"]) == 1):
        tensors["signs"] = _sign_bits(tensors.pop("before"))
    levels = _levels(tensors["right"]) if exact and left is not None and right is not None else 0
    plan = {"left_size": left_size, "right_size": right_size, "factor": factor, "exact": exact, "levels": levels}
    return tensors, plan


def _sign_bits(diagonal: np.ndarray) -> np.ndarray:
    """int32 ``[size / 32]``: whether elements 2j and 2j + 1 of 32 are negative in bits 15 - j and 31 - j."""
    negative = (diagonal.reshape(-1, 16, 2) < 0).astype(np.uint32)
    places = np.arange(15, -1, -1, dtype=np.uint32)
    return ((negative[..., 0] << places) | (negative[..., 1] << (places + 16))).sum(1, dtype=np.uint32).view(np.int32)


def _levels(matrix: np.ndarray) -> int:
    """How many of the bits 3, 4 of the index act as a factor ``[[1, 1], [1, -1]]``; what remains has 32 columns."""
    levels = 0
    while levels < 2 and len(matrix) >= 64 and len(matrix) & (len(matrix) - 1) == 0:
        parts = matrix.reshape(len(matrix) // 16, 2, 8, len(matrix) // 16, 2, 8)
        part = parts[:, 0, :, :, 0]
        if not all(np.array_equal(parts[:, i, :, :, j], part * (1 - 2 * i * j)) for i in (0, 1) for j in (0, 1)):
            break
        matrix, levels = part.reshape(len(matrix) // 2, -1), levels + 1
    return levels


def _split(
    matrices: Sequence[tuple[int, int, np.ndarray]], size: int
) -> tuple[np.ndarray | None, np.ndarray | None, int, int] | None:
    """(left, right, size of left, size of right), if the matrices act on the two halves of one cut of the axis."""
    left = [m for outer, inner, m in matrices if inner > 1]
    right = [m for outer, inner, m in matrices if inner == 1]
    if len(left) > 1 or len(right) > 1 or any(outer != 1 for outer, inner, _ in matrices if inner > 1):
        return None
    right_size = len(right[0]) if right else size // len(left[0])
    left_size = size // right_size
    if left and len(left[0]) != left_size:
        return None
    padded = [max(16, 1 << (n - 1).bit_length()) for n in (left_size, right_size)]
    widest = max([*(len(m) for m in left), *(len(m) for m in right)])
    if widest > _WIDEST or padded[0] * padded[1] > _LARGEST:
        return None
    return (left[0] if left else None), (right[0] if right else None), left_size, right_size


def _normalized(matrix: np.ndarray) -> tuple[np.ndarray, float, bool]:
    """The matrix over its largest entry, that entry, and whether the result is exact in bfloat16 (±1, 0)."""
    top = float(np.abs(matrix).max()) or 1.0
    scaled = (matrix / top).astype(np.float32)
    rounded = np.round(scaled)
    close = np.abs(scaled - rounded).max() < 1e-6
    return (
        (rounded if close else scaled),
        top,
        bool(close and np.array_equal(rounded.astype(ml_dtypes.bfloat16), rounded)),
    )
