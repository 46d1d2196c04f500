"""Fold shifts: ``β`` of a norm moves into the biases of the sites behind it, where sites are all that read it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.analysis.spaces import KEPT, Norm, Site
from qcompile.ir.graph import add_initializer, append_node, is_float
from qcompile.ir.required import constant, dtype_of, name_of, operand, optional, rank_of, shape_of
from qcompile.passes.state import State

__all__ = ["FoldShifts"]


@dataclass(frozen=True)
class FoldShifts:
    """Move shifts behind norms into the sites that read them.

    Args:
        most_elements: parameters of more elements stay shared.
    """

    most_elements: int = 1 << 16
    name: ClassVar[str] = "fold-shifts"

    def apply(self, state: State) -> bool:
        """Rewrite the graph in place; its function stays the same."""
        copied = _untie(state.model, self.most_elements)
        if copied:
            state.edited()
        folded = _fold_shifts(state)
        if folded:
            state.edited()
        return bool(copied or folded)


def _untie(model: ir.Model, most_elements: int) -> int:
    """Give every bias, norm and scaling its own copy of its parameters; sites keep sharing theirs.

    Exporters merge constants that happen to be equal, which would tie axes that have nothing to do with each other.
    """
    copies = 0
    for value in list(model.graph.initializers.values()):
        uses, tensor = list(value.uses()), value.const_value
        if len(uses) < 2 or tensor is None or value.shape is None or not _is_parameter(value, uses, most_elements):
            continue
        for node, index in uses[1:]:
            node.replace_input_with(index, add_initializer(model, name_of(value), tensor.numpy()))
            copies += 1
    return copies


def _is_parameter(value: ir.Value, uses: Sequence[tuple[ir.Node, int]], most_elements: int) -> bool:
    """Whether a constant is a vector, or one that is cut into heads and added or multiplied."""
    if rank_of(value) == 1 or not is_float(value) or not 1 < constant(value).size <= most_elements:
        return rank_of(value) == 1
    return all(node.op_type in ("Add", "Sub", "Mul", "Div") and not node.domain for node, _ in uses)


def _fold_shifts(state: State) -> int:
    """Move ``β`` of each norm into the biases of the sites behind it, where sites are all that read it."""
    analysis = state.analyze_apart()
    readers: dict[ir.Value, list[Site]] = defaultdict(list)
    for site in analysis.sites:
        if site.input is not None and site.node.op_type in ("MatMul", "Gemm"):
            readers[site.input].append(site)
    folded = 0
    for norm in analysis.norms:
        output = norm.node.outputs[0]
        if norm.shift is None or norm.shift.const_value is None or not norm.shift.const_value.numpy().any():
            continue
        if output.is_graph_output() or {site.node for site in readers[output]} != {n for n, _ in output.uses()}:
            continue
        if any(site.ref_in is not norm.ref_out or not site.is_matrix or _kept(site) for site in readers[output]):
            continue
        _shift_into_biases(state.model, norm, norm.shift, readers[output])
        folded += 1
    return folded


def _kept(site: Site) -> bool:
    return KEPT in site.node.metadata_props


def _shift_into_biases(model: ir.Model, norm: Norm, shift: ir.Value, sites: Sequence[Site]) -> None:
    array = constant(shift).numpy()
    extra = array.astype(np.float64)
    for site in sites:
        weight = constant(site.weight).numpy().astype(np.float64)
        _add_bias(model, site, extra @ (weight if site.axis_in == 0 else weight.T))
    replace = add_initializer(model, f"{shift.name}_folded", np.zeros_like(array))
    norm.node.replace_input_with(list(norm.node.inputs).index(shift), replace)


def _add_bias(model: ir.Model, site: Site, extra: np.ndarray) -> None:
    """Add a vector to what a site writes: to the bias that it has, or by a new operator behind it."""
    dtype = dtype_of(site.weight).numpy()
    if site.node.op_type == "Gemm":
        bias = optional(site.node, 2)
        beta = site.node.attributes.get_float("beta", 1.0)
        extra = extra * site.node.attributes.get_float("alpha", 1.0) / (beta or 1.0)
        if bias is not None and bias.const_value is not None and beta:
            extra = extra + bias.const_value.numpy().astype(np.float64).reshape(-1)
            site.node.replace_input_with(2, add_initializer(model, f"{site.name}_bias", extra.astype(dtype)))
            return
    output = site.node.outputs[0]
    uses = list(output.uses())
    if len(uses) == 1 and uses[0][0].op_type == "Add" and not output.is_graph_output():
        node, index = uses[0]
        other = operand(node, 1 - index)
        if other.const_value is not None and tuple(shape_of(other)) == extra.shape:
            total = (other.const_value.numpy().astype(np.float64) + extra).astype(dtype)
            node.replace_input_with(1 - index, add_initializer(model, f"{site.name}_bias", total))
            return
    bias = add_initializer(model, f"{site.name}_bias", extra.astype(dtype))
    made = append_node(site.node, "Add", [output, bias], name=f"{site.name}_shifted", like=output, after=True)
    ir.convenience.replace_all_uses_with(output, made.outputs[0], replace_graph_outputs=True)
    made.replace_input_with(0, output)
