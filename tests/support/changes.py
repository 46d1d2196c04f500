"""Changes of basis for tests: graphs in ONNX's textual syntax, random members of freedoms, what they do to outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import torch

from qcompile.axes import Node
from qcompile.capture import example_inputs
from qcompile.errors import InputError
from qcompile.evaluate import Session, compare, evaluate_double, to_double
from qcompile.folding import fold
from qcompile.freedom import Freedom
from qcompile.spaces import Analysis, analyze
from qcompile.transforms import Compose, Dense, Diagonal, Permutation, Transform

__all__ = ["TOLERANCE", "basis_change", "change", "claimed", "evaluate_exactly", "member", "parse"]

#: Relative L2 between a graph and itself in another basis, by the type that it is evaluated in.
TOLERANCE = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 2e-4}


def parse(text: str, opset: int = 21, seed: int = 0, **fixed: np.ndarray) -> ir.Model:
    """A model from a graph in textual syntax; declared values that no node makes are constants, random unless given."""
    header = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1, "qcompile" : 1]>'
    proto = onnx.parser.parse_model(f"{header}\n{text}")
    rng = np.random.default_rng(seed)
    produced = {name for node in proto.graph.node for name in node.output}
    for info in [item for item in proto.graph.value_info if item.name not in produced]:
        dims = tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)
        array = fixed.get(info.name, rng.standard_normal(dims).astype(np.float32))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), info.name))
        proto.graph.value_info.remove(info)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def _orthogonal(size: int, rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((size, size)))[0]


def member(freedom: Freedom, size: int, seed: int) -> Transform:
    """A random member of a group, far from the identity and well conditioned."""
    rng = np.random.default_rng(seed)
    if freedom == Freedom.GENERAL:
        matrix = _orthogonal(size, rng) @ np.diag(rng.uniform(0.5, 2.0, size)) @ _orthogonal(size, rng)
        return Dense(torch.from_numpy(matrix))
    if Freedom.ORTHOGONAL in freedom:
        return Dense(torch.from_numpy(_orthogonal(size, rng)))
    if Freedom.ORTHOGONAL_ONES in freedom:
        basis = np.linalg.qr(np.column_stack([np.ones(size), rng.standard_normal((size, size - 1))]))[0]
        inner = np.eye(size)
        inner[1:, 1:] = _orthogonal(size - 1, rng)
        return Dense(torch.from_numpy(basis @ inner @ basis.T))
    scale = np.ones(size)
    if Freedom.POSITIVE_DIAGONAL in freedom:
        scale = rng.uniform(0.5, 2.0, size)
    if Freedom.SIGNS in freedom:
        scale = scale * rng.choice([-1.0, 1.0], size)
    parts: list[Transform] = [Diagonal(torch.from_numpy(scale))]
    if Freedom.PERMUTATION in freedom:
        parts.append(Permutation(torch.from_numpy(rng.permutation(size))))
    return Compose(tuple(parts))


def claimed(analysis: Analysis, seed: int) -> dict[Node, Transform]:
    """A random member of the freedom that each space claims."""
    chosen = [space for space in analysis.spaces if space.freedom != Freedom.NONE]
    return {space.node: member(space.freedom, space.size, seed + i) for i, space in enumerate(chosen)}


def change(model: ir.Model, choose: Callable[[Analysis], Mapping[Node, Transform]], seed: int = 0) -> float:
    """Relative L2 between a model and itself in another basis, both in float64."""
    return basis_change(model, choose, seed)[0]


def basis_change(
    model: ir.Model,
    choose: Callable[[Analysis], Mapping[Node, Transform]],
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
) -> tuple[float, np.dtype]:
    """The same, and the type that both were evaluated in: fused operators of onnxruntime exist in float32 only."""
    wide = to_double(model)
    inputs = example_inputs(model, seed=seed, sizes=sizes)
    before, dtype = evaluate_exactly(wide, inputs)
    analysis = analyze(wide)
    fold(analysis, choose(analysis))
    return compare(before, evaluate_exactly(wide, inputs)[0])[0], dtype


def evaluate_exactly(wide: ir.Model, inputs: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.dtype]:
    """A float64 graph's outputs: in float64, or in float32 where operators have no other implementation."""
    try:
        return evaluate_double(wide, inputs), np.dtype(np.float64)
    except (InputError, NotImplementedError, KeyError, RuntimeError, ValueError, IndexError):
        narrow = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in inputs.items()}
        return Session(_single(wide)).run(narrow), np.dtype(np.float32)


def _single(wide: ir.Model) -> ir.Model:
    narrow = wide.clone()
    for value in [*narrow.graph.inputs, *narrow.graph.initializers.values(), *narrow.graph.outputs]:
        if value.dtype == ir.DataType.DOUBLE:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            if value.const_value is not None:
                value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
    for node in narrow.graph:
        for output in node.outputs:
            output.type, output.shape = None, None
        if node.op_type == "Cast" and node.attributes["to"].value == ir.DataType.DOUBLE:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
    return narrow
