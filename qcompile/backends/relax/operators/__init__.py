"""The table of operators: one row an operator of ONNX, by domain and name."""

from qcompile.backends.relax.operators import (
    attention,
    elementwise,
    filling,
    indexing,
    normalization,
    products,
    reductions,
    resizing,
    shaping,
    spectra,
    state,
    windows,
)  # fmt: skip
from qcompile.backends.relax.operators.registry import OPERATORS

__all__ = ["OPERATORS"]

#: Each registers its rows.
_ = (
    attention, elementwise, filling, indexing, normalization, products, reductions, resizing, shaping, spectra, state,
    windows,
)  # fmt: skip
