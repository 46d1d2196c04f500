"""The transforms that compete for a space or for the input of sites."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import onnx_ir as ir

from qcompile.analysis.forms import weight_matrix
from qcompile.analysis.spaces import Site
from qcompile.ir.required import operand
from qcompile.statistics.second_moment import shrinkage
from qcompile.targets.scheme import Scheme
from qcompile.transforms.freedom import Freedom

if TYPE_CHECKING:
    from qcompile.statistics.calibration import Statistics
    from qcompile.transforms import Transform
    from qcompile.transforms.orders.orders import Variant

__all__ = ["FITTED_BLOCKS", "LEAST_GAIN", "fitted", "not_worth", "orthogonal_candidates"]

#: An online transform must lower the error of its sites by this fraction at least, besides paying its price.
LEAST_GAIN = 0.05

BLOCKS = (16, 32, 64, 128)

#: Blocks of the closed form; a larger one costs more and equalizes more.
FITTED_BLOCKS = (16, 32, 64)

#: The largest axis that gets a rotation without structure: folding one takes time with the square of the size.
DENSE = 4096

#: Operators that only lay a value out anew.
VIEWS = ("Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def orthogonal_candidates(
    size: int, scheme: Scheme, kind: str, seed: int, freedom: Freedom = Freedom.ORTHOGONAL, *, offline: bool = False
) -> dict[str, Transform]:
    """Orthogonal transforms of an axis, by name, small blocks first.

    Where the vector of ones must stay, they are made of regular Hadamard matrices, which keep it. Offline, any rotation
    is free: one without structure competes where there is no Hadamard matrix of the size.
    """
    from qcompile.transforms import has_hadamard

    variant: Variant = "default" if Freedom.ORTHOGONAL in freedom else "regular"
    group = scheme.group or size
    found: dict[str, Transform] = {}

    def add(block: int) -> None:
        found["hadamard" if block == size else f"block-hadamard-{block}"] = _hadamard(size, block, seed, variant)

    if kind in ("auto", "block"):
        blocks = [b for b in BLOCKS if size % b == 0 and b < size and (b >= group or kind == "auto")]
        for block in [b for b in blocks if has_hadamard(b, variant)][: 1 if kind == "block" else None]:
            add(block)
    if (kind != "block" or not found) and has_hadamard(size, variant):
        add(size)
    if not found and kind != "none" and (block := _largest_block(size, variant)) > 1:
        add(block)
    if offline and kind in ("auto", "hadamard") and variant == "default" and not has_hadamard(size) and size <= DENSE:
        found["random-orthogonal"] = _dense(size, seed)
    return found


@lru_cache
def _dense(size: int, seed: int) -> Transform:
    from qcompile.transforms import RandomOrthogonal

    return RandomOrthogonal(size, seed)


@lru_cache
def _hadamard(size: int, block: int, seed: int, variant: Variant) -> Transform:
    """One for all groups that ask: it keeps its steps."""
    from qcompile.transforms import BlockDiagonal, Hadamard

    whole = Hadamard(block, seed, variant)
    return whole if block == size else BlockDiagonal(whole, size // block)


def _largest_block(size: int, variant: Variant) -> int:
    """The largest divisor with a Hadamard matrix: for sizes that have none themselves."""
    from qcompile.transforms import has_hadamard

    return max((d for d in range(1, size + 1) if size % d == 0 and has_hadamard(d, variant)), default=1)


def fitted(sites: Sequence[Site], offline: Transform | None, own: Statistics, block: int) -> Transform:
    """The closed form WUSH in blocks, for the input of those sites behind its offline transform.

    The moment is shrunk as far as so few rows demand; of none it is the identity, and what is fitted is the weight.
    """
    import torch

    from qcompile.transforms import wush
    from qcompile.transforms.fitted import diagonal_blocks

    moment = torch.from_numpy(own.second_moment)
    weight = torch.cat([weight_matrix(site).double() for site in sites])
    if offline is not None:
        moment = offline.apply(offline.apply(moment, 0), 1)
        weight = offline.dual().apply(weight, -1)
    blocks = diagonal_blocks(moment, block)
    rho, means = shrinkage(blocks, own.effective), blocks.diagonal(dim1=-2, dim2=-1).mean(-1)
    blocks = (1 - rho) * blocks
    blocks.diagonal(dim1=-2, dim2=-1).add_(rho * means[:, None])
    return wush(blocks, weight, block)


def not_worth(value: ir.Value, sites: Sequence[Site]) -> str | None:
    """Why an online transform is not forced on sites: it would make a rotated copy of a wide value for few features."""
    width = sites[0].shape[sites[0].axis_in]
    written = sum(math.prod(site.shape) // width for site in sites)
    readers = {site.node for site in sites}
    while written < width:
        if any(node not in readers and node.op_type != "Shape" for node, _ in value.uses()):
            return f"other operators read its {width} features as they are, and it makes only {written} of them"
        node = value.producer()
        if node is None or node.op_type not in VIEWS:
            break
        value, readers = operand(node, 0), {node}
    return None
