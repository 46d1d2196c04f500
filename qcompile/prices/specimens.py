"""Small graphs to be timed: products of one input, an online transform, one operator several times."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from qcompile.ir.transform_nodes import Structure, append_transform

if TYPE_CHECKING:
    from qcompile.transforms import Transform

__all__ = ["COUNT", "Specimen", "convolution", "nothing", "operators", "products", "turned"]

#: Operators in a graph: one alone takes less time than the call of the graph.
COUNT = 9

_OPSET, _FILE = 23, 11
_CONTRIB = "com.microsoft"

Sizes = Sequence[int]


@dataclass(frozen=True)
class Specimen:
    """A graph of one operator.

    Args:
        kind: what it is priced as.
        count: how often it is there.
        model: the graph.
        inputs: what the graph is run on.
    """

    kind: str
    count: int
    model: ir.Model
    inputs: Mapping[str, np.ndarray]


def products(width: int, outs: Sequence[int]) -> ir.Model:
    """``x [rows, width]`` times a weight for each of ``outs``, with a bias."""
    draw, x = np.random.default_rng(0), _input("x", [None, width])
    nodes, results, constants = [], [], []
    for number, out in enumerate(outs):
        weight, bias = (
            _constant(f"{name}{number}", draw.standard_normal(shape).astype(np.float32))
            for name, shape in (("weight", (width, out)), ("bias", (out,)))
        )
        nodes.append(ir.node("MatMul", [x, weight], name=f"product{number}"))
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias], name=f"sum{number}"))
        results.append(_output(nodes[-1], f"y{number}", [None, out]))
        constants += [weight, bias]
    return _model([x], results, nodes, constants)


def convolution(channels: int, groups: int, kernel: int, sizes: int) -> ir.Model:
    """``x [batch, channels, sizes, sizes]`` convolved to as many channels, with a bias."""
    draw, shape = np.random.default_rng(0), [None, channels, sizes, sizes]
    x, own = _input("x", shape), (channels, channels // groups, kernel, kernel)
    constants = [_constant("weight", draw.standard_normal(own).astype(np.float32)), _constant("bias", _ones(own[:1]))]
    attributes: dict[str, Any] = {"pads": [kernel // 2] * 4, "group": groups}
    node = ir.node("Conv", [x, *constants], attributes, name="convolution")
    return _model([x], [_output(node, "y", shape)], [node], constants)


def nothing() -> ir.Model:
    """``x [rows, 16]`` as it comes."""
    x = _input("x", [None, 16])
    node = ir.node("Identity", [x], name="nothing")
    return _model([x], [_output(node, "y", [None, 16])], [node], [])


def turned(transform: Transform) -> ir.Model:
    """``x [rows, size]`` in another basis."""
    x = _input("x", [None, transform.size])
    last = ir.node("Identity", [x], name="last")
    model = _model([x], [_output(last, "y", [None, transform.size])], [last], [])
    steps = [(outer, inner, matrix.numpy()) for outer, inner, matrix in transform.factors()]
    structure = Structure(transform.kind, steps)
    last.replace_input_with(0, append_transform(model, last, x, structure, np.dtype(np.float32), "turned"))
    return model


#: Operators that are measured: kind, operator, domain, attributes, and how its other operands follow from the shape of
#: the first, ``[batch, heads, rows, features]``.
_SORTS: Sequence[tuple[str, str, str, Mapping[str, Any], Callable[[Sizes], Sequence[np.ndarray]]]] = (
    ("view", "Reshape", "", {}, lambda s: [np.array([0, 0, -1])]),
    ("copy", "Gather", "", {"axis": 1}, lambda s: [np.arange(s[1])]),
    ("copy", "Slice", "", {}, lambda s: [np.array([0]), np.array([s[3]]), np.array([3])]),
    ("transpose", "Transpose", "", {"perm": [0, 2, 1, 3]}, lambda s: []),
    ("arithmetic", "Add", "", {}, lambda s: [_ones(s)]),
    ("arithmetic", "Mul", "", {}, lambda s: [_ones(s[3:])]),
    ("arithmetic", "Div", "", {}, lambda s: [_ones((*s[:3], 1))]),
    ("select", "Less", "", {}, lambda s: [_ones(s)]),
    ("exponential", "Sigmoid", "", {}, lambda s: []),
    ("exponential", "Exp", "", {}, lambda s: []),
    ("exponential", "QuickGelu", _CONTRIB, {"alpha": 1.0}, lambda s: []),
    ("gelu", "Gelu", _CONTRIB, {}, lambda s: []),
    ("gelu", "BiasGelu", _CONTRIB, {}, lambda s: [_ones(s[3:])]),
    ("logarithm", "Softplus", "", {}, lambda s: []),
    ("sine", "Sin", "", {}, lambda s: []),
    ("power", "Pow", "", {}, lambda s: [np.array(3.0, np.float32)]),
    ("softmax", "Softmax", "", {"axis": -1}, lambda s: []),
    ("norm", "LayerNormalization", "", {"axis": -1}, lambda s: [_ones(s[3:]), _ones(s[3:])]),
    ("norm", "RMSNormalization", "", {"axis": -1}, lambda s: [_ones(s[3:])]),
    ("reduction", "ReduceMean", "", {}, lambda s: [np.array([-1])]),
    ("matmul", "MatMul", "", {}, lambda s: [_ones((*s[:2], s[3], s[2]))]),
    ("attention", "Attention", "", {"is_causal": 1}, lambda s: [_ones(s), _ones(s)]),
    ("other", "CumSum", "", {}, lambda s: [np.array(3)]),
)

_SHAPES = ((1, 4, 4, 16), (1, 4, 16, 64), (1, 4, 128, 64), (2, 8, 256, 32), (1, 2, 8, 32))


def operators(count: int) -> Iterator[Specimen]:
    """Graphs of one operator of each kind, so many times on the same operands, at several sizes."""
    for (kind, op, domain, attributes, others), shape in itertools.product(_SORTS, _SHAPES):
        x, operands = _input("x", shape), others(shape)
        constants = [_constant(f"operand{i}", array) for i, array in enumerate(operands)]
        nodes = [ir.node(op, [x, *constants], attributes, domain=domain, name=f"{op}{i}") for i in range(count)]
        dtype = ir.DataType.BOOL if kind == "select" else ir.DataType.FLOAT
        model = _model([x], [_output(nodes[-1], "y", None, dtype)], nodes, constants)
        yield Specimen(kind, count, model, {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)})


def _ones(shape: Sizes) -> np.ndarray:
    return np.ones(shape, np.float32)


def _input(name: str, shape: Sequence[int | None]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))


def _constant(name: str, array: np.ndarray) -> ir.Value:
    return ir.Value(name=name, const_value=ir.tensor(array, name=name), type=ir.TensorType(ir.tensor(array).dtype),
                    shape=ir.Shape(array.shape))  # fmt: skip


def _output(
    node: ir.Node, name: str, shape: Sequence[int | None] | None, dtype: ir.DataType = ir.DataType.FLOAT
) -> ir.Value:  # fmt: skip
    value = node.outputs[0]
    value.name, value.type = name, ir.TensorType(dtype)
    value.shape = None if shape is None else ir.Shape(shape)
    return value


def _model(
    inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], nodes: Sequence[ir.Node], constants: Sequence[ir.Value]
) -> ir.Model:  # fmt: skip
    imports = {"": _OPSET, _CONTRIB: 1}
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=constants, opset_imports=imports, name="specimen")
    return ir.Model(graph, ir_version=_FILE)
