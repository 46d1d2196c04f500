"""Values that the host knows while the program is generated: small constants, and what follows from shapes.

A node whose inputs are all known is computed here; where that cannot be told, it runs on the GPU like any other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcompile.operators.symbols import ARITHMETIC, KINDS, host_array
from qcompile.shapes import evaluate as shapes

__all__ = ["constant", "evaluate"]

#: Elements of a host value; larger ones are tensors on the GPU.
_LARGEST = 64

#: The same for constants of floats: few are scales of a resampling, many are weights.
_LARGEST_FLOATS = 8


def constant(value: ir.Value) -> np.ndarray | None:
    """A small constant as a host value."""
    tensor = value.const_value
    if tensor is None or tensor.dtype not in KINDS or len(tensor.shape) > 2:
        return None
    kind = KINDS[tensor.dtype]
    if tensor.size > (_LARGEST_FLOATS if kind is float else _LARGEST):
        return None
    return host_array(tensor.numpy().astype(kind))


def evaluate(node: ir.Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray] | None:
    """The outputs of a node whose inputs are all host values, or ``None``."""
    return shapes.evaluate(node, inputs, ARITHMETIC, _LARGEST)
