"""Transforms fitted to data: KLT·H, WUSH, Kronecker products and DuQuant's greedy rotations, in closed form or greedy.

Second moments are ``G = E[x xᵀ]``, given whole (``[n, n]``) or as the diagonal blocks of one (``[count, b, b]``).
"""

from __future__ import annotations

import numpy as np
import torch

from qcompile.errors import InputError
from qcompile.threads import by_part
from qcompile.transforms.composite import Compose, Kronecker
from qcompile.transforms.dense import BlockDense, Dense
from qcompile.transforms.hadamard import Hadamard
from qcompile.transforms.orders.orders import has_hadamard
from qcompile.transforms.transform import Transform

__all__ = [
    "diagonal_blocks", "duquant_block", "klt_hadamard", "kronecker", "kronecker_factors", "wush", "wush_of_moments",
]  # fmt: skip

_LEAST_DAMPING, _MOST_DAMPING = 1e-8, 0.1  # of the mean eigenvalue; what needs more is not a second moment

#: Features from which a GPU finds eigenvectors sooner than a CPU, if that is where the moment is.
_LARGE = 1024


def diagonal_blocks(second_moment: torch.Tensor, size: int | None = None) -> torch.Tensor:
    """Symmetric float64 ``[count, b, b]`` from ``[n]`` (a diagonal), ``[n, n]`` or ``[count, b, b]``.

    Args:
        second_moment: the moments.
        size: block size ``b``; the whole axis if None.

    Raises:
        InputError: on any other shape, if ``size`` does not divide the axis, or on NaN and infinity.
    """
    g = second_moment.detach()
    if not torch.isfinite(g).all():
        raise InputError("the second moment holds NaN or infinity: check the calibration data")
    if g.ndim == 3 and g.shape[1] == g.shape[2] and size in (None, g.shape[1]):
        g = g.to("cpu", torch.float64)
        return (g + g.mT) / 2
    if g.ndim not in (1, 2) or g.shape[0] != g.shape[-1]:
        raise InputError(f"a second moment has shape [n], [n, n] or [count, b, b], not {list(g.shape)}")
    n = g.shape[0]
    size = n if size is None else size
    if size < 1 or n % size:
        raise InputError(f"blocks of {size} do not divide an axis of {n}")
    if g.ndim == 1:
        return torch.diag_embed(g.to("cpu", torch.float64).view(-1, size))
    cut = g.reshape(n // size, size, n // size, size).diagonal(dim1=0, dim2=2)
    blocks = cut.permute(2, 0, 1).to("cpu", torch.float64)  # no more than these leave a GPU
    return (blocks + blocks.mT) / 2


def _hadamard(size: int) -> torch.Tensor:
    if not has_hadamard(size):
        raise InputError(f"no Hadamard matrix of order {size} for this block; choose another block size")
    return Hadamard(size).matrix()


def klt_hadamard(second_moment: torch.Tensor, size: int | None = None) -> Transform:
    """``H Kᵀ``, K the eigenvectors: all output channels get the same second moment (MambaQuant, 2025).

    Args:
        second_moment: ``[n, n]`` or blocks; see ``diagonal_blocks``.
        size: block size, the whole axis if None.

    Returns:
        An orthogonal transform: ``BlockDense``, or for one block ``Compose(Dense, Hadamard)``.
    """
    blocks = diagonal_blocks(second_moment, size)
    h = _hadamard(blocks.shape[-1])
    large = blocks.shape[-1] >= _LARGE
    vectors = torch.linalg.eigh(blocks.to(second_moment.device) if large else blocks).eigenvectors.cpu()
    vectors = vectors * torch.sign(torch.sign(vectors.sum(1, keepdim=True)) + 0.5)  # LAPACK leaves the signs open
    if len(blocks) == 1:
        return Compose((Dense(vectors[0].mT), Hadamard(blocks.shape[-1])))
    return BlockDense(h @ vectors.mT)


def wush(
    second_moment: torch.Tensor, weight: torch.Tensor, size: int | None = None, damping: float = 1e-4
) -> BlockDense:
    """The closed-form transform that makes activation and weight moments of each block equal and flat (WUSH).

    ``G = L Lᵀ``, ``Lᵀ Wᵀ / √R = U S Vᵀ``, ``T = H S^½ Uᵀ L⁻¹``: then ``T G Tᵀ = T⁻ᵀ (WᵀW/R) T⁻¹ = H S Hᵀ``.
    Not orthogonal.

    Args:
        second_moment: of the inputs, ``[n, n]`` or blocks; see ``diagonal_blocks``.
        weight: ``[R, n]``, the weights of all sites that read this input, stacked along their outputs.
        size: block size, the whole axis if None.
        damping: multiple of the mean eigenvalue added to both moments, so that channels which were never active
            and rank-deficient weights keep T invertible; raised tenfold where it does not suffice.

    Raises:
        InputError: on shapes that do not fit, or moments that are not positive semidefinite.
    """
    blocks = diagonal_blocks(second_moment, size)
    count, b, _ = blocks.shape
    if weight.ndim != 2 or weight.shape[1] != count * b:
        raise InputError(f"WUSH: weight of shape {list(weight.shape)} does not read an axis of {count * b}")
    w = weight.detach().to("cpu", torch.float64).view(-1, count, b).transpose(0, 1)
    return wush_of_moments(blocks, w.mT @ w / max(w.shape[1], 1), damping)


def wush_of_moments(
    blocks: torch.Tensor, grams: torch.Tensor, damping: float = 1e-4, device: str | torch.device = "cpu", parts: int = 1
) -> BlockDense:
    """``wush`` from second moments of the inputs and of the weights' rows, both ``[count, b, b]``.

    Args:
        blocks, grams: the moments.
        damping: as for ``wush``.
        device: where large blocks compute; of small ones a GPU finds eigenvectors one by one.
        parts: equal parts of the directions that are flat each for itself, the one where most is lost first: for
            formats with more bits in front.
    """
    b = blocks.shape[-1]
    if b >= _LARGE:
        blocks, grams = blocks.to(device), grams.to(device)
    lower = _cholesky(blocks, damping)
    gram = lower.mT @ _damped(grams, damping) @ lower
    squares, u = by_part(torch.linalg.eigh, gram)  # S² and U without the R-sized V
    u = u * torch.sign(torch.sign(u.sum(1, keepdim=True)) + 0.5)
    root = squares.clamp_min(torch.finfo(torch.float64).tiny).pow(0.25)
    apart = root[:, :, None] * u.mT
    mixed = _hadamard(b // parts).to(u.device)
    if parts > 1:
        apart, mixed = apart.flip(1), torch.block_diag(*[mixed] * parts)
    left = mixed @ apart
    return BlockDense(torch.linalg.solve_triangular(lower, left, upper=False, left=False))


def _damped(blocks: torch.Tensor, damping: float) -> torch.Tensor:
    """Blocks plus a multiple of the mean of their diagonals; an all-zero block becomes a multiple of I."""
    mean = blocks.diagonal(dim1=-2, dim2=-1).mean(-1).abs()
    scale = torch.where(mean > 0, mean, torch.ones_like(mean))
    return blocks + damping * scale[:, None, None] * torch.eye(
        blocks.shape[-1], dtype=blocks.dtype, device=blocks.device
    )


def _cholesky(blocks: torch.Tensor, damping: float) -> torch.Tensor:
    while damping <= _MOST_DAMPING:
        lower, info = torch.linalg.cholesky_ex(_damped(blocks, damping))
        if not info.any():
            return lower
        damping = max(10 * damping, _LEAST_DAMPING)
    raise InputError("WUSH: the second moment is not positive semidefinite")


def duquant_block(stats: torch.Tensor, size: int, steps: int = 64, seed: int = 0) -> BlockDense:
    """DuQuant's greedy rotation of each block, one rotation and no permutation as in DuQuant++.

    At each step the channel of most energy is moved to the front and spread evenly by a rotation whose first
    column is constant; the product with the least largest energy is kept (Lin et al., 2024, algorithm 1).

    Args:
        stats: energies ``E[x²]`` of the channels ``[n]``, or second moments; see ``diagonal_blocks``.
        size: block size: the group of the format.
        steps: greedy steps tried.
        seed: of the other columns of the rotations.
    """
    moments = diagonal_blocks(stats, size)
    count = len(moments)
    generator = np.random.Generator(np.random.PCG64(seed))
    total = torch.eye(size, dtype=torch.float64).repeat(count, 1, 1)
    best, best_peak = total, moments.diagonal(dim1=-2, dim2=-1).amax(-1)
    for _ in range(steps):
        rotation = _spreading(moments, _uniform_first_column(size, generator))
        total, moments = rotation @ total, rotation @ moments @ rotation.mT
        peak = moments.diagonal(dim1=-2, dim2=-1).amax(-1)
        best = torch.where((peak < best_peak)[:, None, None], total, best)
        best_peak = torch.minimum(peak, best_peak)
    return BlockDense(best)


def _uniform_first_column(size: int, generator: np.random.Generator) -> torch.Tensor:
    start = torch.from_numpy(generator.standard_normal((size, size)))
    start[:, 0] = 1
    return torch.linalg.qr(start).Q


def _spreading(moments: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """``rotation`` after a swap of the front with the channel of most energy, per block."""
    index = torch.arange(rotation.shape[0]).repeat(len(moments), 1)
    top = moments.diagonal(dim1=-2, dim2=-1).argmax(-1)
    index[:, 0] = top
    index.scatter_(1, top[:, None], 0)
    index[top == 0, 0] = 0
    return rotation[:, index].transpose(0, 1)


def kronecker(
    moment: torch.Tensor, gram: torch.Tensor | None = None, factors: tuple[int, int] | None = None
) -> Kronecker:
    """``A ⊗ B`` fitted to the Kronecker product that is nearest to the moments (FlatQuant's form, not learned).

    Args:
        moment: of the inputs, ``[n, n]``.
        gram: of the weights' rows, ``[n, n]``: both factors are WUSH then, which is not orthogonal; KLT·H without.
        factors: sizes of ``A`` and ``B``; by default the two with Hadamard matrices whose sum is least.

    Raises:
        InputError: if the size has no two such factors.
    """
    found = factors or kronecker_factors(len(moment))
    if found is None:
        raise InputError(f"{len(moment)} is no product of two orders of Hadamard matrices")
    a, b = found
    inputs = _factor_moments(moment, a, b)
    if gram is None:
        left, right = (klt_hadamard(part) for part in inputs)
        return Kronecker(left, right)
    weights = _factor_moments(gram, a, b)
    left, right = (wush_of_moments(x[None], w[None]) for x, w in zip(inputs, weights, strict=True))
    return Kronecker(left, right)


def kronecker_factors(size: int) -> tuple[int, int] | None:
    """The two orders of Hadamard matrices whose product is the size and whose sum is least, if there are any."""
    pairs = [(a, size // a) for a in range(2, size) if size % a == 0 and has_hadamard(a) and has_hadamard(size // a)]
    return min(pairs, key=lambda pair: (sum(pair), pair), default=None)


def _factor_moments(moment: torch.Tensor, a: int, b: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of a moment, each its trace over the other: their product is the moment if it is one."""
    table = moment.reshape(a, b, a, b)
    left, right = table.diagonal(dim1=1, dim2=3).sum(-1), table.diagonal(dim1=0, dim2=2).sum(-1)
    scale = left.diagonal().sum().clamp_min(torch.finfo(torch.float64).tiny)
    return left, right / scale
