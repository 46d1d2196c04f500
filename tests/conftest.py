"""Shared helpers: graphs from ONNX's textual syntax, random members of freedoms, the check of soundness."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import torch

from qcompile.axes import Node
from qcompile.capture import example_inputs
from qcompile.evaluate import compare, evaluate_double, to_double
from qcompile.folding import fold
from qcompile.freedom import Freedom
from qcompile.spaces import Analysis, analyze
from qcompile.transforms import Compose, Dense, Diagonal, Permutation, Transform

torch.set_num_threads(1)


def _parse(text: str, opset: int = 21, seed: int = 0, **fixed: np.ndarray) -> ir.Model:
    """A model from a graph in textual syntax; declared values that no node makes become constants, random unless given."""
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


@pytest.fixture
def parse() -> Callable[..., ir.Model]:
    """Makes a model from ONNX's textual syntax."""
    return _parse


def _orthogonal(size: int, rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((size, size)))[0]


def _member(freedom: Freedom, size: int, seed: int) -> Transform:
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


@pytest.fixture
def member() -> Callable[[Freedom, int, int], Transform]:
    """Draws a random member of a freedom."""
    return _member


def _change(model: ir.Model, choose: Callable[[Analysis], Mapping[Node, Transform]], seed: int = 0) -> float:
    """Relative L2 between a model and itself in another basis, both in float64."""
    wide = to_double(model)
    inputs = example_inputs(model, seed=seed)
    before = evaluate_double(wide, inputs)
    analysis = analyze(wide)
    fold(analysis, choose(analysis))
    return compare(before, evaluate_double(wide, inputs))[0]


@pytest.fixture
def change() -> Callable[..., float]:
    """Measures what a change of basis does to a model's outputs."""
    return _change


@pytest.fixture
def check_sound() -> Callable[..., None]:
    """Applies random transforms from every space's claimed freedom and requires the same outputs."""

    def check(model: ir.Model, seed: int = 0) -> None:
        def choose(analysis: Analysis) -> dict[Node, Transform]:
            chosen = [space for space in analysis.spaces if space.freedom != Freedom.NONE]
            return {space.node: _member(space.freedom, space.size, seed + i) for i, space in enumerate(chosen)}

        assert _change(model, choose, seed) < 1e-9

    return check
