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

from qcompile.run.session import Session

__all__ = ["Step", "trace"]

Shape = tuple[int, ...]


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

    Raises:
        InputError: if it cannot run the graph.
    """
    with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
        session = Session(model, threads=1, traced=Path(folder) / "trace")
        session.run(inputs)
        events = json.loads(Path(session.end_trace()).read_text())
    return [_step(event) for event in events if event.get("cat") == "Node" and event["name"].endswith(_ENDS)]


_ENDS = "_kernel_time"


def _step(event: Mapping[str, Any]) -> Step:
    said = event["args"]
    read, written = (_shapes(said.get(key, [])) for key in ("input_type_shape", "output_type_shape"))
    return Step(event["name"].removesuffix(_ENDS), said["op_name"], read, written)


def _shapes(tensors: list[dict[str, list[int]]]) -> tuple[Shape, ...]:
    return tuple(tuple(shape) for tensor in tensors for shape in tensor.values())
