"""Transforms: invertible matrices with structure, applied fast, folded in float64, serialized by construction.

Names are imported when first used: most need torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcompile.transforms.composite import BlockDiagonal, Compose, DirectSum, Kronecker
    from qcompile.transforms.dense import BlockDense, Dense, RandomOrthogonal
    from qcompile.transforms.elementary import Diagonal, Givens, Householder, Identity, Permutation
    from qcompile.transforms.fitted import duquant_block, klt_hadamard, kronecker, kronecker_factors, wush
    from qcompile.transforms.hadamard import Hadamard, random_hadamard
    from qcompile.transforms.lowrank import LowRank, svd_lowrank
    from qcompile.transforms.monomial import by_magnitude, duquant, smoothing, zigzag
    from qcompile.transforms.orders.orders import hadamard_matrix, hadamard_orders, has_hadamard
    from qcompile.transforms.serialize import from_json
    from qcompile.transforms.signal import Signal, matched
    from qcompile.transforms.transform import Transform

#: The module of each name.
_LAZY = {
    "BlockDense": "dense",
    "BlockDiagonal": "composite",
    "Compose": "composite",
    "Dense": "dense",
    "Diagonal": "elementary",
    "DirectSum": "composite",
    "Givens": "elementary",
    "Hadamard": "hadamard",
    "Householder": "elementary",
    "Identity": "elementary",
    "Kronecker": "composite",
    "LowRank": "lowrank",
    "Permutation": "elementary",
    "RandomOrthogonal": "dense",
    "Signal": "signal",
    "Transform": "transform",
    "by_magnitude": "monomial",
    "duquant": "monomial",
    "duquant_block": "fitted",
    "from_json": "serialize",
    "hadamard_matrix": "orders.orders",
    "hadamard_orders": "orders.orders",
    "has_hadamard": "orders.orders",
    "klt_hadamard": "fitted",
    "kronecker": "fitted",
    "kronecker_factors": "fitted",
    "matched": "signal",
    "random_hadamard": "hadamard",
    "smoothing": "monomial",
    "svd_lowrank": "lowrank",
    "wush": "fitted",
    "zigzag": "monomial",
}

__all__ = [
    "BlockDense",
    "BlockDiagonal",
    "Compose",
    "Dense",
    "Diagonal",
    "DirectSum",
    "Givens",
    "Hadamard",
    "Householder",
    "Identity",
    "Kronecker",
    "LowRank",
    "Permutation",
    "RandomOrthogonal",
    "Signal",
    "Transform",
    "by_magnitude",
    "duquant",
    "duquant_block",
    "from_json",
    "hadamard_matrix",
    "hadamard_orders",
    "has_hadamard",
    "klt_hadamard",
    "kronecker",
    "kronecker_factors",
    "matched",
    "random_hadamard",
    "smoothing",
    "svd_lowrank",
    "wush",
    "zigzag",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
