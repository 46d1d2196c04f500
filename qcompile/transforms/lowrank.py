"""A low-rank branch in high precision beside a quantized weight: ``W ≈ L₁ L₂ + Q(R)`` (SVDQuant)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from qcompile.errors import InputError

__all__ = ["LowRank", "svd_lowrank"]


@dataclass(frozen=True)
class LowRank:
    """``left @ right + residual``, the residual being what the caller's rounding returned.

    Args:
        left: ``[out, rank]``.
        right: ``[rank, in]``.
        residual: ``[out, in]``, rounded.
        error: ``‖W - left right - residual‖² / ‖W‖²``.
    """

    left: torch.Tensor
    right: torch.Tensor
    residual: torch.Tensor
    error: float


def svd_lowrank(
    weight: torch.Tensor, rank: int, quantize: Callable[[torch.Tensor], torch.Tensor], iterations: int = 4,
    *, of_error: bool = False,
) -> LowRank:  # fmt: skip
    """Alternate ``L = SVD_rank(W - Q)`` and ``Q = quantize(W - L)``, keeping the best (Li et al., 2024).

    Args:
        weight: ``[out, in]``.
        rank: of the branch, between 0 and ``min(out, in)``.
        quantize: rounds a matrix to the values of a format.
        iterations: at least 1; the first takes the SVD of the weight itself.
        of_error: whether it takes that of what rounding loses, ``W - quantize(W)``, instead (LoRC, arXiv:2307.09782).

    Raises:
        InputError: if ``rank`` or ``iterations`` is out of range.
    """
    if weight.ndim != 2 or not 0 <= rank <= min(weight.shape) or iterations < 1:
        raise InputError(f"low rank {rank} ({iterations} iterations) does not fit a weight of {list(weight.shape)}")
    start = quantize(weight) if of_error else torch.zeros_like(weight)
    best = last = _alternate(weight, start, rank, quantize)
    for _ in range(iterations - 1):
        last = _alternate(weight, last.residual, rank, quantize)
        best = min(best, last, key=lambda branch: branch.error)
    return best


def _alternate(
    weight: torch.Tensor, residual: torch.Tensor, rank: int, quantize: Callable[[torch.Tensor], torch.Tensor]
) -> LowRank:
    left, right = _truncated_svd(weight - residual, rank)
    residual = quantize(weight - left @ right)
    error = float((weight - left @ right - residual).double().square().sum() / _norm(weight))
    return LowRank(left, right, residual, error)


def _norm(weight: torch.Tensor) -> float:
    return float(weight.double().square().sum()) or 1.0


def _truncated_svd(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The leading directions, from eigenvectors of the smaller of ``M Mᵀ`` and ``Mᵀ M``: few are wanted of many."""
    wide, m = matrix.shape[0] <= matrix.shape[1], matrix.double()
    vectors = torch.linalg.eigh(m @ m.mT if wide else m.mT @ m).eigenvectors.flip(-1)[:, :rank]
    vectors = vectors * torch.sign(torch.sign(vectors.sum(0)) + 0.5)  # LAPACK leaves the signs open
    left, right = (vectors, vectors.mT @ m) if wide else (m @ vectors, vectors.mT)
    root = (right if wide else left.mT).norm(dim=1).clamp_min(torch.finfo(m.dtype).tiny).sqrt()  # of singular values
    if wide:
        return (left * root).to(matrix.dtype), (right / root[:, None]).to(matrix.dtype)
    return (left / root).to(matrix.dtype), (right * root[:, None]).to(matrix.dtype)
