"""The table of operators: one row an operator of ONNX, by domain and name."""

from qcompile.backends.relax.operators import (
    elementwise,
    filling,
    indexing,
    normalization,
    products,
    reductions,
    shaping,
    state,
)  # fmt: skip
from qcompile.backends.relax.operators.registry import OPERATORS

__all__ = ["OPERATORS"]

_ = (elementwise, filling, indexing, normalization, products, reductions, shaping, state)  # each registers its rows
