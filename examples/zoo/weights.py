"""Reads a zoo model's weights back into torch, from the trainer's file or from the ONNX file that ships."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["name_initializers", "restore"]

TRANSPOSED = "_transposed"
"""Suffix of an initializer that holds a parameter with its two axes swapped (MatMul wants it so)."""

LOGARITHM = "_log"
"""Suffix of a parameter whose initializer, named without it, holds -exp of it: the decays of a state space."""


def name_initializers(graph: onnx.GraphProto, parameters: dict[str, Tensor]) -> None:
    """Give every initializer that is a parameter its name; the exporter numbers those it transposes."""
    names = {}
    for name, parameter in parameters.items():
        array = parameter.detach().numpy()
        names[array.shape, array.tobytes()] = name
        if array.ndim == 2:
            names[array.T.shape, array.T.tobytes()] = name + TRANSPOSED
    renamed = {}
    for tensor in graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        # Only what the exporter numbered: equal values elsewhere are another parameter's own.
        if tensor.name not in parameters and (array.shape, array.tobytes()) in names:
            renamed[tensor.name] = names[array.shape, array.tobytes()]
    logarithms = [name for name in parameters if name.endswith(LOGARITHM)]
    scans = [node for node in graph.node if node.op_type == "SelectiveScan"]
    for name, node in zip(logarithms, scans, strict=True):
        renamed[node.input[2]] = name.removesuffix(LOGARITHM)
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def _from_onnx(path: Path) -> dict[str, Tensor]:
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    upright = {name: a.T if name.endswith(TRANSPOSED) else a for name, a in arrays.items()}
    found = {name.removesuffix(TRANSPOSED): torch.from_numpy(np.array(a)) for name, a in upright.items()}
    return found | {name + LOGARITHM: torch.log(-a) for name, a in found.items() if name.endswith(".A")}


def restore(model: nn.Module, path: Path) -> nn.Module:
    """Load the weights saved at `path` (.safetensors or .onnx) into the model and return it."""
    saved = _from_onnx(path) if path.suffix == ".onnx" else load_file(path)
    # An ONNX graph holds other constants too; a parameter that is missing still is an error.
    model.load_state_dict({name: saved[name] for name in model.state_dict()})
    return model
