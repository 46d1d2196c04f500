"""The transforms that compete for a space or for the input of sites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qcompile.scoring import weight_matrix
from qcompile.spaces import Site
from qcompile.targets import Scheme

if TYPE_CHECKING:
    from qcompile.calibration import Statistics
    from qcompile.transforms import Transform

__all__ = ["FITTED_BLOCKS", "fitted", "orthogonal_candidates"]

BLOCKS = (16, 32, 64, 128)

#: Blocks of the closed form; a larger one costs more and equalizes more.
FITTED_BLOCKS = (16, 32, 64)


def orthogonal_candidates(size: int, scheme: Scheme, kind: str, seed: int) -> dict[str, Transform]:
    """Orthogonal transforms of an axis, by name, small blocks first."""
    from qcompile.transforms import BlockDiagonal, Hadamard, has_hadamard

    group = (scheme.weight.group if scheme.weight else None) or size
    found: dict[str, Transform] = {}
    if kind in ("auto", "block"):
        blocks = [b for b in BLOCKS if size % b == 0 and b < size and (b >= group or kind == "auto")]
        for block in blocks[:1] if kind == "block" else blocks:
            found[f"block-hadamard-{block}"] = BlockDiagonal(Hadamard(block, seed), size // block)
    if (kind != "block" or not found) and has_hadamard(size):
        found["hadamard"] = Hadamard(size, seed)
    if not found and kind != "none":
        block = _largest_block(size)
        if block > 1:
            found[f"block-hadamard-{block}"] = BlockDiagonal(Hadamard(block, seed), size // block)
    return found


def _largest_block(size: int) -> int:
    """The largest divisor with a Hadamard matrix: for sizes that have none themselves."""
    from qcompile.transforms import has_hadamard

    return max((d for d in range(1, size + 1) if size % d == 0 and has_hadamard(d)), default=1)


def fitted(sites: Sequence[Site], offline: Transform | None, own: Statistics, block: int) -> Transform:
    """The closed form WUSH in blocks, for the input of those sites behind its offline transform."""
    import torch

    from qcompile.transforms import wush

    moment = torch.from_numpy(own.second_moment)
    weight = torch.cat([weight_matrix(site).double() for site in sites])
    if offline is not None:
        moment = offline.apply(offline.apply(moment, 0), 1)
        weight = offline.dual().apply(weight, -1)
    return wush(moment, weight, block)
