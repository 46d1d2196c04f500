"""Permutations and diagonals fitted to data: what channels are grouped with, and how loud they are.

They cost nothing where they fold: behind norms, through gates, between a site and the next.
"""

from __future__ import annotations

import torch

from qcompile.errors import InputError
from qcompile.transforms.composite import Compose
from qcompile.transforms.elementary import Diagonal, Permutation
from qcompile.transforms.fitted import duquant_block
from qcompile.transforms.transform import Transform

__all__ = ["by_magnitude", "duquant", "smoothing", "zigzag"]

#: Of the mean energy, added to that of each channel: what never spoke is not made loud without bounds.
_LEAST = 1e-3


def smoothing(inputs: torch.Tensor, weights: torch.Tensor, alpha: float = 0.5) -> Diagonal:
    """The diagonal that moves loudness from inputs to weights, ``x_j' = x_j w_j^(1-α) / x_j^α`` (SmoothQuant).

    With α = ½ both get equal energy in every channel: the diagonal part of WUSH.

    Args:
        inputs, weights: energies of the channels, ``E[x_j²]`` and ``Σ_i W_ij²``, or squares of their peaks: ``[n]``.
        alpha: 0 flattens the weights alone, 1 the inputs.
    """
    x, w = (energies.double() + _LEAST * energies.double().mean() for energies in (inputs, weights))
    if not (x > 0).all() or not (w > 0).all():
        return Diagonal(torch.ones_like(x))
    values = w.pow((1 - alpha) / 2) / x.pow(alpha / 2)
    return Diagonal(values / values.log().mean().exp())


def by_magnitude(energies: torch.Tensor) -> Permutation:
    """The permutation that puts channels in order of energy, the loudest first: those of a group are alike."""
    return Permutation(torch.argsort(energies, descending=True, stable=True))


def zigzag(energies: torch.Tensor, block: int) -> Permutation:
    """The permutation that deals channels out to blocks there and back, by energy: all blocks are alike (DuQuant).

    Raises:
        InputError: if blocks of that size do not divide the axis.
    """
    size = energies.numel()
    if block < 1 or size % block:
        raise InputError(f"blocks of {block} do not divide an axis of {size}")
    dealt = torch.argsort(energies, descending=True, stable=True).view(block, size // block)
    dealt[1::2] = dealt[1::2].flip(1)
    return Permutation(dealt.T.reshape(-1))


def duquant(moment: torch.Tensor, block: int, seed: int = 0) -> Transform:
    """DuQuant: greedy rotations in blocks, a zigzag over the blocks, and rotations again (Lin et al., 2024).

    Args:
        moment: ``[n, n]``.
        block: of the rotations.
        seed: of their random columns.
    """
    first = duquant_block(moment, block, seed=seed)
    turned = first.apply(first.apply(moment, 0), 1)
    order = zigzag(turned.diagonal(), block)
    dealt = turned[order.indices][:, order.indices]
    return Compose((first, order, duquant_block(dealt, block, seed=seed + 1)))
