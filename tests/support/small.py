"""A model of two maps as a file, and data that it takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["write_data", "write_model"]


def write_model(folder: Path) -> Path:
    """``x -> MatMul -> Relu -> MatMul -> y``, widths 64, 128, 64; sites ``/block/first/MatMul`` and ``second``."""
    rng = np.random.default_rng(0)
    arrays = {"up": rng.standard_normal((64, 128)) / 8, "down": rng.standard_normal((128, 64)) / 8}
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["h"], name="/block/first/MatMul"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "down"], ["y"], name="second"),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 64]) for n in "xy"]
    stored = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "mlp", values[:1], values[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "mlp.onnx")
    return folder / "mlp.onnx"


def write_data(folder: Path) -> Path:
    """Six rows of ``x``."""
    np.savez(folder / "x.npz", x=np.random.default_rng(1).standard_normal((6, 64)).astype(np.float32))
    return folder / "x.npz"
