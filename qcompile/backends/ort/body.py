"""Writes the body of a function of our domain, one operator a call.

body = Body(opset=17)
x = body.input("x")
function = body.function("Twice", body.Mul(x, body.constant(2.0)))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.ir.functions import ALLOWZERO, DOMAIN

__all__ = ["Body"]


class Body:
    """A function under construction. Any operator of the standard is a method: ``body.Mul(a, b)``.

    Args:
        opset: version of the standard operators; 13 or later.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self._inputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._attributes: list[ir.Attr] = []
        self._constants: dict[tuple[np.dtype, tuple[int, ...], bytes], ir.Value] = {}

    def input(self, name: str) -> ir.Value:
        """A new input."""
        self._inputs.append(ir.Value(name=name))
        return self._inputs[-1]

    def ints(self, name: str) -> ir.Value:
        """A new attribute of the function, a list of integers, as an int64 vector."""
        kind = ir.AttributeType.INTS
        self._attributes.append(ir.Attr(name, kind, None))
        return self._append("Constant", (), [ir.RefAttr("value_ints", name, kind)])

    def constant(self, value: Any, dtype: type = np.float32) -> ir.Value:
        """A scalar or array; equal ones are made once."""
        array: np.ndarray = np.asarray(value, dtype)
        key = (array.dtype, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._append("Constant", (), [ir.AttrTensor("value", ir.tensor(array))])
        return self._constants[key]

    def vector(self, *values: int) -> ir.Value:
        """An int64 vector: a shape, axes."""
        return self.constant(values, np.int64)

    def call(self, function: str, inputs: Sequence[ir.Value]) -> ir.Value:
        """A function of our domain, with one output."""
        return self._append(function, inputs, (), DOMAIN)

    def __getattr__(self, op: str) -> Callable[..., ir.Value]:
        if not op[:1].isupper():
            raise AttributeError(op)
        return lambda *inputs, **attributes: self._append(op, inputs, ir.convenience.convert_attributes(attributes))

    def _append(self, op: str, inputs: Sequence[ir.Value], attributes: Sequence[ir.Attr], domain: str = "") -> ir.Value:
        node = ir.Node(domain, op, inputs, attributes, num_outputs=1)
        node.outputs[0].name = f"v{len(self._nodes)}"
        self._nodes.append(node)
        return node.outputs[0]

    # ---- what reads better than the operators themselves ---------------------------------------------------------

    def reduce(self, op: str, x: ir.Value, *, keep: bool = False) -> ir.Value:
        """``ReduceMax``, ``ReduceMin`` or another along the last axis, which is dropped or kept with size 1.

        onnxruntime gives an empty value back as it is: of an expert without a token would come a value with an axis
        too many. Cutting the axis that is left to size 1 changes nothing else.
        """
        if self.opset >= 18 or op == "ReduceSum":
            reduced = self._append(op, (x, self.vector(-1)), ())
        else:
            reduced = self._append(op, (x,), [ir.AttrInt64s("axes", [-1])])
        reduced = self.Slice(reduced, self.vector(0), self.vector(1), self.vector(-1))
        return reduced if keep else self.Squeeze(reduced, self.vector(-1))

    def reshape(self, x: ir.Value, shape: ir.Value) -> ir.Value:
        """A float value in a computed shape, in which a 0 is a size where the operators can say so."""
        return self.Reshape(x, shape, **({"allowzero": 1} if self.opset >= ALLOWZERO else {}))

    def column(self, x: ir.Value) -> ir.Value:
        """A new last axis of size 1, to broadcast along."""
        return self.Unsqueeze(x, self.vector(-1))

    def to(self, x: ir.Value, dtype: ir.DataType) -> ir.Value:
        """A cast."""
        return self.Cast(x, to=int(dtype))

    def function(self, name: str, *outputs: ir.Value) -> ir.Function:
        """The finished function."""
        imports = {"": self.opset}
        if any(node.domain == DOMAIN for node in self._nodes):
            imports[DOMAIN] = 1
        graph = ir.Graph(self._inputs, outputs, nodes=self._nodes, opset_imports=imports, name=name)
        return ir.Function(DOMAIN, name, graph=graph, attributes=self._attributes)
