"""Runtimes that are no backends of ours: onnxruntime at every level, and ONNX's evaluator, also behind its inliner."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

__all__ = ["RUNTIMES"]

Arrays = Mapping[str, np.ndarray]


def _onnxruntime(level: str) -> Callable[[onnx.ModelProto, Arrays], list[np.ndarray]]:
    def run(proto: onnx.ModelProto, inputs: Arrays) -> list[np.ndarray]:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, dict(inputs))

    return run


def _reference(proto: onnx.ModelProto, inputs: Arrays) -> list[np.ndarray]:
    return ReferenceEvaluator(proto).run(None, dict(inputs))


#: By name, a function from a model and its inputs to its outputs.
RUNTIMES: dict[str, Callable[[onnx.ModelProto, Arrays], list[np.ndarray]]] = {
    **{level: _onnxruntime(level) for level in sorted(ort.GraphOptimizationLevel.__members__)},
    "reference evaluator": _reference,
    "inlined": lambda proto, inputs: _reference(onnx.inliner.inline_local_functions(proto), inputs),
}
