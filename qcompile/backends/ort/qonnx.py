"""QONNX: a graph of floats with an operator for each rounding, IntQuant or FloatQuant, in front of what reads it.

Weights stand in it as the values that they are rounded to, so that readers see them at the first quantizer
(https://github.com/fastmachinelearning/qonnx, the specification of its operators).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.inliner import inline_local_functions

from qcompile.analysis.forms import Lookup, Stack, read_convolution, read_site
from qcompile.analysis.patches import is_convolution
from qcompile.errors import TargetError
from qcompile.formats import Format, Kind, Quantized
from qcompile.formats.static import Range
from qcompile.ir.graph import add_initializer, append_node, drop_unused, node_name
from qcompile.ir.required import name_of
from qcompile.targets.plans import Plan, drop_plans, planned, ranged

__all__ = ["FILE", "write_qonnx"]

FILE = "model.qonnx"

#: Where readers find the operators.
_DOMAIN = "qonnx.custom_op.general"


def write_qonnx(model: ir.Model, folder: Path) -> str:
    """Write a planned graph, which stays as it is, and return the name of the file.

    Raises:
        TargetError: if it has no operator for a format.
    """
    model = model.clone()
    writer = _Writer(model)
    for node, within in ranged(model):
        writer.round_result(node, within)
    for node, plan in planned(model):
        writer.round_site(node, plan)
    drop_plans(model)
    drop_unused(model)
    model.graph.opset_imports[_DOMAIN] = 1
    proto = ir.to_proto(ir.external_data.load_to_model(model))
    onnx.save(inline_local_functions(proto), folder / FILE)  # readers know no functions of ours
    return FILE


def _numbers(within: Range) -> tuple[Format, np.float32, int]:
    return within.format, np.float32(within.scale), within.zero_point


class _Writer:
    """One graph under way."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._ranges: dict[ir.Value, Range] = {}
        self._inputs: dict[tuple[ir.Value, Range], ir.Value] = {}
        self._weights: dict[tuple[int, ir.Value], ir.Value] = {}

    def round_result(self, node: ir.Node, within: Range) -> None:
        """Let all that reads a result read it rounded."""
        value = node.outputs[0]
        readers, shown = list(value.uses()), value.is_graph_output()
        made = self._quant(node, value, *_numbers(within), f"{value.name}/rounded", after=True)
        for reader, index in readers:
            reader.replace_input_with(index, made)
        if shown:
            outputs, name = self.model.graph.outputs, name_of(value)
            outputs[outputs.index(value)] = made
            value.name, made.name = f"{name}/raw", name
        made.shape, made.type = value.shape, value.type
        self._ranges[made] = within

    def round_site(self, node: ir.Node, plan: Plan) -> None:
        """Let a site read its weight, and its input, rounded."""
        site = read_convolution(node) if is_convolution(node) else read_site(node)
        if isinstance(site, Stack) or not isinstance(plan.weight.format, Format):
            raise TargetError(
                f"QONNX has no operator for the weight of '{node_name(node)}' in {plan.weight.format.name}"
            )
        within = plan.activation
        if isinstance(within, Format) and not isinstance(site, Lookup):
            raise TargetError(
                f"QONNX holds constant scales: '{node_name(node)}' computes those of {within.name} as it runs"
            )
        new: dict[ir.Value, ir.Value] = {site.weight: self._weight(node, site.weight, site.layout, plan.weight)}
        if isinstance(within, Range) and not isinstance(site, Lookup) and self._ranges.get(site.x) != within:
            key = site.x, within
            if key not in self._inputs:
                name = f"{site.x.name}/{within.format.name}"
                self._inputs[key] = self._quant(node, site.x, *_numbers(within), name)
            new[site.x] = self._inputs[key]
        for index, value in enumerate(node.inputs):
            if value in new:
                node.replace_input_with(index, new[value])

    def _weight(self, node: ir.Node, weight: ir.Value, layout: Any, rounded: Quantized) -> ir.Value:
        """The weight as its matrix in groups, rounded, and brought to its own shape."""
        if (id(rounded), weight) in self._weights:
            return self._weights[id(rounded), weight]
        fmt, name = rounded.format, name_of(weight)
        values = rounded.dequantize().numpy()
        scale = rounded.all_scales.effective.numpy()
        zero = None if rounded.zero_points is None else rounded.zero_points.numpy().astype(np.float32)
        group = fmt.group or values.shape[1]
        padded = np.pad(values, ((0, 0), (0, -values.shape[1] % group))).reshape(len(values), -1, group)
        steps = np.where(scale == 0, np.float32(1), scale).reshape(len(values), -1, 1)
        matrix = self._constant(f"{name}/values", padded)
        zeros: Any = 0 if zero is None else zero.reshape(steps.shape)
        made = self._quant(node, matrix, fmt, steps, zeros, f"{name}/rounded")
        made = self._shaped(node, made, (len(values), -1))
        if padded.size > values.size:
            ends = (
                self._constant(f"{name}/{what}", np.array([n], np.int64))
                for what, n in (("from", 0), ("to", values.shape[1]), ("along", 1))
            )
            made = append_node(node, "Slice", [made, *ends], name=f"{name}/cut").outputs[0]
        made = self._shaped(node, made, layout.ordered)
        made = append_node(
            node, "Transpose", [made], {"perm": layout.back}, name=f"{name}/{node_name(node)}/turned"
        ).outputs[0]
        self._weights[id(rounded), weight] = self._shaped(node, made, layout.shape)
        return self._weights[id(rounded), weight]

    def _shaped(self, node: ir.Node, value: ir.Value, sizes: Any) -> ir.Value:
        shape = self._constant(f"{value.name}/sizes", np.array(sizes, np.int64))
        return append_node(node, "Reshape", [value, shape], name=f"{value.name}/shaped").outputs[0]

    def _quant(
        self, node: ir.Node, x: ir.Value, fmt: Format, scale: Any, zero: Any, name: str, *, after: bool = False
    ) -> ir.Value:  # fmt: skip
        """A quantizer in front of an operator, or behind it."""
        element = fmt.element
        numbers: dict[str, Any] = {"scale": scale}
        if element.kind is Kind.INTEGER and element.levels[1] - element.levels[0] == 1:
            signed = element.levels[0] < 0
            op = "IntQuant"
            narrow = signed and element.levels[0] > -(2 ** (element.bits - 1))
            attributes = {"signed": int(signed), "narrow": int(narrow), "rounding_mode": "ROUND"}
            numbers |= {"zeropt": zero, "bitwidth": element.bits}
        elif element.kind is Kind.FLOAT:
            op, attributes = (
                "FloatQuant",
                {"rounding_mode": "ROUND", "has_inf": 0, "has_nan": 0, "has_subnormal": 1, "saturation": 1},
            )
            numbers |= {"exponent_bitwidth": element.exponent_bits, "mantissa_bitwidth": element.mantissa_bits,
                        "exponent_bias": element.bias, "max_val": element.levels[-1]}  # fmt: skip
        else:
            raise TargetError(f"QONNX has no operator for {fmt.name}: its levels are neither integers nor floats")
        operands = [
            x,
            *(self._constant(f"{name}/{key}", np.asarray(value, np.float32)) for key, value in numbers.items()),
        ]
        return append_node(node, op, operands, attributes, name=name, domain=_DOMAIN, after=after).outputs[0]

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        return add_initializer(self.model, name, array)
