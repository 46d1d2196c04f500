"""Fold batch norms: statistics that are known beforehand are a scale and a shift, which the site before takes over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.analysis.folding import rewrite
from qcompile.analysis.patches import is_convolution
from qcompile.analysis.spaces import KEPT
from qcompile.ir.graph import add_initializer, is_float
from qcompile.ir.required import constant, dtype_of, graph_of, operand, optional, sizes_of
from qcompile.passes.state import State

__all__ = ["FoldBatchNorms"]


@dataclass(frozen=True)
class FoldBatchNorms:
    """Fold batch norms into the convolutions and Gemms that nothing else reads, in float64."""

    name: ClassVar[str] = "fold-batch-norms"

    def apply(self, state: State) -> bool:
        """Rewrite the graph in place; its function stays the same."""
        norms = [node for node in state.model.graph if node.op_type == "BatchNormalization" and not node.domain]
        folded = [_fold(state.model, norm) for norm in norms]
        if any(folded):
            state.edited()
        return any(folded)


def _fold(model: ir.Model, norm: ir.Node) -> bool:
    """Let the operator in front of a norm do its work; whether that could be."""
    x, (output, *others) = operand(norm, 0), norm.outputs
    site = x.producer()
    training = norm.attributes.get_int("training_mode", 0) or any(value.uses() for value in others)
    if site is None or training or len(x.uses()) != 1 or x.is_graph_output() or not _foldable(site):
        return False
    parameters = [operand(norm, i) for i in range(1, 5)]
    if any(value.const_value is None for value in parameters):
        return False
    scale, shift, mean, variance = (constant(value).numpy().astype(np.float64) for value in parameters)
    factor = scale / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    weight, bias = operand(site, 1), optional(site, 2)
    old = np.zeros_like(mean) if bias is None else constant(bias).numpy().astype(np.float64)
    rewrite(model, weight, partial(_scaled, factor, site))
    moved = ((old - mean) * factor + shift).astype(dtype_of(weight).numpy())
    site.resize_inputs(3)
    site.replace_input_with(2, add_initializer(model, f"{weight.name}_shift", moved))
    name, x.shape, x.type = output.name, output.shape, output.type
    ir.convenience.replace_all_uses_with(output, x, replace_graph_outputs=True)
    graph_of(norm).remove(norm, safe=True)
    output.name, x.name = None, name
    return True


def _foldable(site: ir.Node) -> bool:
    """Whether an operator can take a scale and a shift of each feature that it writes."""
    weight, bias = optional(site, 1), optional(site, 2)
    if KEPT in site.metadata_props or weight is None or weight.const_value is None or not is_float(weight):
        return False
    if len(weight.uses()) != 1 or weight.is_graph_output() or (bias is not None and bias.const_value is None):
        return False
    if is_convolution(site):
        return True
    plain = all(site.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    gemm = site.op_type == "Gemm" and not site.domain and plain
    return gemm and (bias is None or sizes_of(bias) == (sizes_of(weight)[_columns(site)],))


def _columns(gemm: ir.Node) -> int:
    return 0 if gemm.attributes.get_int("transB", 0) else 1


def _scaled(factor: np.ndarray, site: ir.Node, weight: np.ndarray) -> np.ndarray:
    """The weight with a factor for each feature that its operator writes."""
    if site.op_type == "Gemm":
        return weight * _along(factor, weight.ndim, _columns(site))
    if site.op_type == "Conv":
        return weight * _along(factor, weight.ndim, 0)
    groups = site.attributes.get_int("group", 1)
    parts = weight.reshape(groups, -1, *weight.shape[1:])
    return (parts * factor.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)


def _along(factor: np.ndarray, rank: int, axis: int) -> np.ndarray:
    shape: Sequence[int] = [-1 if i == axis else 1 for i in range(rank)]
    return factor.reshape(shape)
