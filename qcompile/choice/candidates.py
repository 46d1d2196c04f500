"""The transforms that compete for a space or for the input of sites."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import onnx_ir as ir

from qcompile.analysis.spaces import Site
from qcompile.choice.kinds import NAMED
from qcompile.ir.required import operand
from qcompile.targets.scheme import Scheme
from qcompile.transforms.freedom import Freedom

if TYPE_CHECKING:
    from qcompile.choice.fits import Fit
    from qcompile.transforms import Transform
    from qcompile.transforms.orders.orders import Variant

__all__ = [
    "ALPHAS", "LEAST_GAIN", "fitted_candidates", "is_shared", "named_candidate", "not_worth", "orthogonal_candidates",
    "shared_candidates", "wush_candidates",
]  # fmt: skip

#: An online transform must lower the error of its sites by this fraction at least, besides paying its price.
LEAST_GAIN = 0.05

BLOCKS = (16, 32, 64, 128)

#: Blocks of the closed form; a larger one costs more, equalizes more, and knows more of what features share.
FITTED_BLOCKS = (16, 32, 64)

#: The largest block, and that of axes which it does not divide.
LARGEST_BLOCKS = (128, 96)

#: The block by which bases are told apart.
USUAL_BLOCK = 64

#: Diagonals, by the part of the loudness that inputs give away: half where both are rounded, less for weights alone.
ALPHAS = {"diagonal": 0.5, "diagonal-25": 0.25}

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
    if not found and kind != "none" and (block := _largest_block(size, size, variant)) > 1:
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


def _largest_block(most: int, size: int, variant: Variant = "default") -> int:
    """The largest divisor up to ``most`` with a Hadamard matrix: for sizes that have none themselves."""
    from qcompile.transforms import has_hadamard

    return max((d for d in range(1, most + 1) if size % d == 0 and has_hadamard(d, variant)), default=1)


def fitted_candidates(fit: Fit, scheme: Scheme, freedom: Freedom, seed: int) -> dict[str, Transform]:
    """Transforms that are fitted to the moments of an axis, by name, each of a group that the axis allows.

    Those that cost most to make are left out of axes that are wide.
    """
    from qcompile.transforms import by_magnitude, duquant_block, has_hadamard, klt_hadamard, smoothing

    found: dict[str, Transform] = {}
    size, group = len(fit.moment), scheme.group or len(fit.moment)
    loud, read = fit.diagonals
    if Freedom.POSITIVE_DIAGONAL in freedom:
        found |= {name: smoothing(loud, read, alpha) for name, alpha in ALPHAS.items()}
    if Freedom.PERMUTATION in freedom and Freedom.ORTHOGONAL not in freedom and group < size:
        found["permutation"] = by_magnitude(loud * read)
    if Freedom.ORTHOGONAL in freedom and size <= DENSE:
        if has_hadamard(size):
            found["klt"] = klt_hadamard(fit.blocks()[0].to(fit.moment.device))
        if group < size and size % group == 0:
            found["duquant-pp"] = duquant_block(loud, group, seed=seed)
    if Freedom.GENERAL in freedom:
        found |= wush_candidates(fit, scheme, whole=True)
    return found


def named_candidate(
    kind: str, size: int, scheme: Scheme, seed: int, freedom: Freedom, fit: Fit | None, *, offline: bool
) -> Transform | None:  # fmt: skip
    """The transform of a kind that a user asks for, if there is one of that size, in blocks where there is none larger.

    Args:
        kind: one of ``kinds.NAMED``.
        fit: what it is fitted to; kinds that are fitted are nothing without.
        offline: whether it folds; what stands in front of sites is made in blocks, for it costs.
    """
    from qcompile.transforms import (
        by_magnitude,
        duquant,
        duquant_block,
        has_hadamard,
        klt_hadamard,
        kronecker,
        kronecker_factors,
        matched,
        smoothing,
        zigzag,
    )

    wanted = NAMED[kind]
    if wanted.freedom not in freedom or (fit is None and wanted.fitted) or not (offline or wanted.online):
        return None
    group = min(scheme.group or size, size)
    block = group if size % group == 0 else _largest_block(group, size)
    if kind in ("hadamard", "block"):
        made = orthogonal_candidates(size, scheme, kind, seed, freedom, offline=offline)
        return list(made.values())[-1] if made else None
    if kind in ("two-block", "regular", "dct", "haar"):
        return _unfitted(kind, size, block, seed, freedom, offline=offline)
    assert fit is not None
    loud, read = fit.diagonals
    if kind == "wush":
        made = wush_candidates(fit, scheme, whole=offline, one=not offline)
        return list(made.values())[-1] if made else None
    if kind == "wush-shared":
        return _shared_wush(fit, block) if block > 1 and has_hadamard(block) else None
    if kind in ("klt", "matched"):
        width = size if offline and has_hadamard(size) else _largest_block(block, size)
        if width < 2:
            return None
        return matched(fit.blocks(width)) if kind == "matched" else klt_hadamard(fit.blocks(width), width)
    if kind == "kronecker":
        general = Freedom.GENERAL in freedom
        factors = kronecker_factors(size)
        return kronecker(fit.blocks()[0], fit.gram if general else None, factors) if factors else None
    makers: dict[str, Callable[[], Transform]] = {
        "duquant": lambda: duquant(fit.moment, 128 if size % 128 == 0 else block, seed),
        "duquant-pp": lambda: duquant_block(loud, block, seed=seed),
        "diagonal": lambda: smoothing(loud, read),
        "permutation": lambda: by_magnitude(loud * read),
        "zigzag": lambda: zigzag(loud, block),
    }
    return makers[kind]()


@lru_cache
def _unfitted(kind: str, size: int, block: int, seed: int, freedom: Freedom, *, offline: bool) -> Transform | None:
    from qcompile.transforms import BlockDiagonal, Compose, Hadamard, Signal

    if kind in ("dct", "haar"):
        width = size if offline else block
        form: Literal["dct", "haar"] = "dct" if kind == "dct" else "haar"
        return Signal(size, form) if width == size else BlockDiagonal(Signal(width, form), size // width)
    variant: Variant = "regular" if kind == "regular" or Freedom.ORTHOGONAL not in freedom else "default"
    width = _largest_block(size, size, variant)
    if width < 2:
        return None
    if kind == "regular":
        return _hadamard(size, width, seed, variant)
    first, second = (Hadamard(width, seed + i) for i in range(2))
    whole = Compose((first, second))
    return whole if width == size else BlockDiagonal(whole, size // width)


def _shared_wush(fit: Fit, block: int) -> Transform:
    """WUSH of the means of all blocks' moments: one matrix, which kernels hold once for a whole layer."""
    from qcompile.transforms import BlockDiagonal, Dense
    from qcompile.transforms.fitted import diagonal_blocks, wush_of_moments

    moments, grams = fit.blocks(block), diagonal_blocks(fit.gram, block)
    found = wush_of_moments(moments.mean(0, keepdim=True), grams.mean(0, keepdim=True))
    return BlockDiagonal(Dense(found.matrices[0]), len(fit.moment) // block)


def wush_candidates(fit: Fit, scheme: Scheme, *, whole: bool = False, one: bool = False) -> dict[str, Transform]:
    """The closed form WUSH in blocks, by name.

    Args:
        whole: whether the axis may be one block: where nobody pays for it.
        one: whether blocks of one size are enough.
    """
    from qcompile.transforms import has_hadamard
    from qcompile.transforms.dense import in_half
    from qcompile.transforms.fitted import diagonal_blocks, wush_of_moments

    size = len(fit.moment)
    blocks = _fitted_blocks(size, scheme)
    if one:
        blocks = [block for block in blocks if block <= USUAL_BLOCK][-1:] or blocks[:1]
    if whole and size <= DENSE and has_hadamard(size):
        blocks = list(dict.fromkeys([*blocks, size]))
    return {
        f"wush-{block}": in_half(
            wush_of_moments(fit.blocks(block), diagonal_blocks(fit.gram, block), device=fit.moment.device)
        )
        for block in blocks
    }  # fmt: skip


def _fitted_blocks(size: int, scheme: Scheme) -> list[int]:
    least = min(scheme.group or size, size)
    largest = [block for block in LARGEST_BLOCKS if size % block == 0][:1]
    return [block for block in (*FITTED_BLOCKS, *largest) if least <= block and size % block == 0]


def shared_candidates(fit: Fit, scheme: Scheme) -> dict[str, Transform]:
    """The closed form WUSH of the means over blocks, one matrix for all of them, by name."""
    from qcompile.transforms import has_hadamard

    size = len(fit.moment)
    found = (block for block in _fitted_blocks(size, scheme) if has_hadamard(block))
    return {f"wush-shared-{block}": _shared_wush(fit, block) for block in found}


def is_shared(transform: Transform) -> bool:
    """Whether a transform is one matrix for all blocks of an axis, or for all of a short axis."""
    from qcompile.transforms.shared_block import MOST, shared_block

    found = shared_block(transform.factors())
    return found is not None and len(found) <= MOST


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
