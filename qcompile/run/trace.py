"""The steps of a run: which kernels of onnxruntime compute a graph on some inputs, and the shapes that they see."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.ir.required import constant
from qcompile.ir.tensors import initializers
from qcompile.run.session import Session

__all__ = ["Step", "trace"]

Shape = tuple[int, ...]

#: Float constants of as many bytes are weights, whose values no shape depends on.
LARGE_BYTES = 1 << 16


@dataclass(frozen=True)
class Step:
    """A kernel that ran, once for each time that it did.

    Args:
        name: of its node, which fusions name after one of those that they replace.
        op: its operator.
        inputs: shapes of what it read, but of constants that were packed.
        outputs: shapes of what it wrote.
    """

    name: str
    op: str
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]


def trace(model: ir.Model, inputs: Mapping[str, np.ndarray]) -> list[Step]:
    """The kernels that onnxruntime runs for a graph, those of bodies too, fused as on any machine.

    Shapes do not hang on weights, which are computed when they are read: zeros stand for them.

    Raises:
        InputError: if it cannot run the graph.
    """
    with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
        session = Session(_hollow(model), threads=1, traced=Path(folder) / "trace")
        session.run(inputs)
        events = json.loads(Path(session.end_trace()).read_text())
    return [_step(event) for event in events if event.get("cat") == "Node" and event["name"].endswith(_ENDS)]


def _hollow(model: ir.Model) -> ir.Model:
    """A copy of a graph with zeros for large weights: memory that is never written takes neither time nor room."""
    hollow = model.clone()
    for _, value in initializers(hollow):
        tensor = constant(value)
        if tensor.dtype.is_floating_point() and tensor.nbytes >= LARGE_BYTES:
            zeros = np.zeros(tensor.shape.numpy(), tensor.dtype.numpy())
            value.const_value = ir.Tensor(zeros, dtype=tensor.dtype, name=value.name)
    return hollow


_ENDS = "_kernel_time"


def _step(event: Mapping[str, Any]) -> Step:
    said = event["args"]
    read, written = (_shapes(said.get(key, [])) for key in ("input_type_shape", "output_type_shape"))
    return Step(event["name"].removesuffix(_ENDS), said["op_name"], read, written)


def _shapes(tensors: list[dict[str, list[int]]]) -> tuple[Shape, ...]:
    return tuple(tuple(shape) for tensor in tensors for shape in tensor.values())
