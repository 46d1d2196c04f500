"""The same graph in a wider floating-point type: float64 for checks, float32 where bfloat16 cannot be computed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompile.ir.graph import append_node, node_name
from qcompile.ir.tensors import Derived, on_device, read

if TYPE_CHECKING:
    import torch

__all__ = ["computes_in_bfloat16", "to_double", "to_single"]


def to_double(model: ir.Model, single: str | None = None) -> ir.Model:
    """The same graph computed in float64: constants, casts and type annotations are widened.

    Integer-valued and boolean parts stay as they are. Run it with ``evaluate_double``, whose inputs are widened too.

    Args:
        single: a domain whose operators go on to compute in float32.
    """
    wide = model.clone()
    _Widening(ir.DataType.DOUBLE, (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)).apply(wide)
    for node in list(wide.graph.all_nodes()) if single is not None else ():
        if node.domain == single:
            _keep_single(node)
    return wide


def _keep_single(node: ir.Node) -> None:
    """Let an operator read and write float32 within a graph in float64."""
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype == ir.DataType.DOUBLE:
            name = f"{value.name}/single {index} of {node_name(node)}"
            read = append_node(node, "Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=name).outputs[0]
            read.type, read.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
            node.replace_input_with(index, read)
    for index, value in enumerate(node.outputs):
        stated = value.dtype == ir.DataType.DOUBLE or (value.dtype is None and index == 0)  # others may be no floats
        if not stated or not value.name:
            continue
        name = value.name
        wide = append_node(node, "Cast", [value], {"to": int(ir.DataType.DOUBLE)}, name=name, like=value, after=True)
        ir.convenience.replace_all_uses_with(value, wide.outputs[0], replace_graph_outputs=True)
        wide.replace_input_with(0, value)
        value.name, value.type = f"{name}/single", ir.TensorType(ir.DataType.FLOAT)


def to_single(model: ir.Model) -> None:
    """Let a graph compute in float32 what it would in bfloat16; its constants are widened when they are read."""
    _Widening(ir.DataType.FLOAT, (ir.DataType.BFLOAT16,)).apply(model)


def computes_in_bfloat16(model: ir.Model) -> bool:
    """Whether an operator reads or writes bfloat16, but for those that only change the type."""
    nodes = (node for graph in model.graphs() for node in graph.all_nodes() if node.op_type not in ("Cast", "Identity"))
    values = (value for node in nodes for value in (*node.inputs, *node.outputs))
    return any(value is not None and value.dtype == ir.DataType.BFLOAT16 for value in values)


class _Widened(Derived):
    """A constant in a wider type."""

    def on(self, device: torch.device) -> torch.Tensor:
        """The constant as a tensor of torch, on a device."""
        import torch

        return on_device(self.source, device).to(torch.float64 if self.dtype is ir.DataType.DOUBLE else torch.float32)


#: Inputs that exist in float32 only, whatever the type of the data.
_SINGLE = {("Resize", 2), ("Upsample", 1)}

#: Attributes that hold the type of what an operator makes.
_TYPES = ("to", "dtype", "output_dtype")


@dataclass(frozen=True)
class _Widening:
    wide: ir.DataType
    narrow: Collection[ir.DataType]

    def apply(self, model: ir.Model) -> None:
        for graph in model.graphs():
            for value in [*graph.inputs, *graph.initializers.values(), *graph.outputs]:
                self._value(value)
            for node in graph.all_nodes():
                for value in node.outputs:
                    self._value(value)
                self._attributes(node, model.opset_imports)
        for function in model.functions.values():
            for node in function.all_nodes():
                self._attributes(node, function.opset_imports)

    def _value(self, value: ir.Value) -> None:
        uses = value.uses()
        if value.dtype not in self.narrow or (uses and all((node.op_type, i) in _SINGLE for node, i in uses)):
            return
        value.type = self._type(value.type)
        if value.const_value is not None:
            value.const_value = _Widened(
                value.const_value, self._tensor, value.const_value.shape, dtype=self.wide, name=value.name,
                keep=self.wide == ir.DataType.DOUBLE,
            )  # fmt: skip

    def _type(self, kind: ir.TypeProtocol | None) -> ir.TypeProtocol:
        """The wide type: a new one, for a clone shares type objects with its original."""
        if isinstance(kind, ir.SequenceType | ir.OptionalType):
            return type(kind)(self._type(kind.elem_type))
        return ir.TensorType(self.wide)

    def _tensor(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        array = read(tensor)
        if tensor.dtype is ir.DataType.BFLOAT16 and self.wide is ir.DataType.FLOAT:  # the upper half of a float32
            return ir.tensor((array.view(np.uint16).astype(np.uint32) << 16).view(np.float32))
        return ir.tensor(array.astype(self.wide.numpy()))

    def _attributes(self, node: ir.Node, opsets: Mapping[str, int]) -> None:
        if self.wide == ir.DataType.DOUBLE:
            _settle_defaults(node, opsets)
        for name, attribute in list(node.attributes.items()):
            if name in _TYPES and attribute.type == ir.AttributeType.INT and attribute.value in self.narrow:
                node.attributes[name] = ir.AttrInt64(name, int(self.wide))
            elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in self.narrow:
                node.attributes[name] = ir.AttrTensor(name, self._tensor(attribute.value))


def _settle_defaults(node: ir.Node, opsets: Mapping[str, int]) -> None:
    """Write out what would be float32 without being told."""
    if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.zeros(1, np.float32)))
    if node.op_type == "GroupNormalization" and opsets.get("", 0) >= 21:  # its statistics would be taken in float32
        node.attributes["stash_type"] = ir.AttrInt64("stash_type", int(ir.DataType.DOUBLE))
    for name in ("value_float", "value_floats") if node.op_type == "Constant" else ():
        if name in node.attributes:
            array = np.asarray(node.attributes.pop(name).value, np.float64)
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array))
