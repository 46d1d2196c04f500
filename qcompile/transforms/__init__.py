"""Transforms: invertible matrices with structure, applied fast, folded in float64, serialized by construction."""

from qcompile.transforms.composite import BlockDiagonal, Compose, DirectSum, Kronecker
from qcompile.transforms.dense import BlockDense, Dense, RandomOrthogonal
from qcompile.transforms.elementary import Diagonal, Givens, Householder, Identity, Permutation
from qcompile.transforms.fitted import duquant_block, klt_hadamard, wush
from qcompile.transforms.hadamard import Hadamard, random_hadamard
from qcompile.transforms.lowrank import LowRank, svd_lowrank
from qcompile.transforms.orders import hadamard_matrix, hadamard_orders, has_hadamard
from qcompile.transforms.serialize import from_json
from qcompile.transforms.transform import Transform

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
    "Transform",
    "duquant_block",
    "from_json",
    "hadamard_matrix",
    "hadamard_orders",
    "has_hadamard",
    "klt_hadamard",
    "random_hadamard",
    "svd_lowrank",
    "wush",
]
