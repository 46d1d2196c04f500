"""Writes a planned graph as a program of torch and Triton: a module, kernels, weights, compiled kernels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from qcompile.backends.gpu.ahead import FOLDER, compile_ahead
from qcompile.backends.gpu.fusions import fuse
from qcompile.backends.gpu.insert_sites import insert_sites, insert_transforms
from qcompile.backends.gpu.manifest import ARCHITECTURES, BANDWIDTH
from qcompile.backends.gpu.module import stored_name, write_module
from qcompile.backends.gpu.objects import Objects
from qcompile.backends.gpu.private_rows import PRECISION, TABLE
from qcompile.backends.gpu.storage import write_safetensors
from qcompile.backends.gpu.version import check_triton
from qcompile.errors import InputError
from qcompile.ir.functions import DOMAIN
from qcompile.ir.graph import node_name
from qcompile.ir.required import constant
from qcompile.ir.tensors import release
from qcompile.operators import library
from qcompile.operators.names import Names
from qcompile.operators.writer import Program
from qcompile.targets.plans import planned
from qcompile.targets.registry import Lowered
from qcompile.targets.split_stacks import unroll
from qcompile.targets.target import Target

__all__ = ["lower"]

MODULE, WEIGHTS, LAYOUT = "model.py", "weights.safetensors", "layout.json"

#: Folders of the artifact, and what is copied into them; the first brings the package's own file.
_COPIED = {
    "kernels": [Path(__file__).parent / "kernels"],
    "runtime": [Path(__file__).parent / "runtime", Path(library.__path__[0])],
}
_KEPT = ("RMSNorm", "LayerNorm", "SelectiveScan", "StateSpaceDuality")


def lower(model: ir.Model, target: Target, folder: Path) -> Lowered:
    """Translate a graph and write the program.

    Args:
        model: the graph; it is edited.
        target: whose architectures the weights are packed and the kernels are compiled for.
        folder: exists; gets ``model.py``, ``weights.safetensors``, ``layout.json`` and the folders ``kernels``,
            ``runtime`` and ``cubins``.

    Raises:
        InputError: if two sites are the same operator on the same values.
        MissingExtraError: without triton.
        TargetError: if triton is too old, an operator has no row in the lowering table, or a format no kernel.
    """
    check_triton()
    arches = ARCHITECTURES[target.name]
    unrolled = unroll(model, routed=False)  # a CUDA graph holds no sizes that depend on data
    _prepare(model)
    objects = Objects(Names())
    insert_transforms(model, objects)
    _inline(model)
    sites = unrolled.joined(insert_sites(model, objects, arches[0]))
    fuse(model)
    program = Program(model, objects.names, TABLE, PRECISION, "triton")
    title = f"{model.graph.name or 'A model'} for {target.name} ({', '.join(arches)})"
    source = write_module(model, program, objects, title)
    size = _write(folder, source, program, objects)
    if target.options.get("ahead", True) and any(packed.kind == "Linear" for packed in objects.packed.values()):
        compile_ahead(folder, arches)
    return Lowered(_files(folder), sites, _notes(arches, program, size))


def _notes(arches: Sequence[str], program: Program, size: int) -> dict[str, Any]:
    """What the manifest says of the hardware. A step of one token reads every weight once."""
    import torch

    estimates = {arch: round(size / BANDWIDTH[arch] * 1e6, 2) for arch in arches}
    return {
        "compiled_for": list(arches),
        "checked_on": torch.cuda.get_device_name() if torch.cuda.is_available() else "Triton's interpreter, no GPU",
        "cuda_graphs": program.notes["captures"],
        "roofline_us": {"estimate": True, "of": "weights read once at the memory's bandwidth", **estimates},
    }


def _files(folder: Path) -> tuple[str, ...]:
    found = [folder / MODULE, folder / WEIGHTS, folder / LAYOUT]
    for name in (*_COPIED, FOLDER):
        found += sorted(path for path in (folder / name).rglob("*") if path.is_file())
    return tuple(path.relative_to(folder).as_posix() for path in found)


def _prepare(model: ir.Model) -> None:
    sites = planned(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if any(value.shape is None for node in model.graph for value in node.outputs):
        common.ShapeInferencePass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    if lost := sorted(node_name(node) for node, _ in sites if node.graph is None):  # merged with an equal operator
        raise InputError(f"lowering: the graph has no site named {', '.join(lost)}")


def _inline(model: ir.Model) -> None:
    """Every function but those that the lowering table has a row for."""
    kept = {key: f for key, f in model.functions.items() if f.domain == DOMAIN and f.name in _KEPT}
    for key in kept:
        del model.functions[key]
    if model.functions:
        common.InlinePass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    model.functions.update(kept)


def _write(folder: Path, source: str, program: Program, objects: Objects) -> int:
    """Nothing is written before the whole graph is translated. Returns the bytes of weights that a step reads."""
    (folder / MODULE).write_text(source)
    for name, (first, *others) in _COPIED.items():
        shutil.copytree(first, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for path in (file for other in others for file in other.glob("[!_]*.py")):
            shutil.copy(path, folder / name)
    tensors: dict[str, Any] = {}
    for name, packed in objects.packed.items():
        for part, array in packed.tensors.items():
            tensors[f"{name}.{part}"] = (array.dtype, array.shape, lambda array=array: array)
    for name, (value, _) in program.weights.items():
        if stored_name(program, name) == name and f"self.{name}" in source:
            tensor = constant(value)
            tensors[name] = (tensor.dtype.numpy(), tuple(tensor.shape), lambda tensor=tensor: _content(tensor))
    write_safetensors(folder / WEIGHTS, tensors)
    (folder / LAYOUT).write_text(json.dumps(_layout(objects), indent=1) + "\n")
    tables = {f"{name}.{part}" for name, p in objects.packed.items() if p.kind == "table" for part in p.tensors}
    read = (entry for name, entry in tensors.items() if name not in tables)
    return sum(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for dtype, shape, _ in read)


def _content(tensor: ir.TensorProtocol) -> np.ndarray:
    array = tensor.numpy().copy()
    release(tensor)
    return array


def _layout(objects: Objects) -> Mapping[str, Any]:
    """What the kernels know of packed weights and formats; a format stands once, and by name elsewhere."""
    formats: dict[str, Any] = {}

    def named(entry: Any) -> Any:
        if not isinstance(entry, dict) or "element" not in entry:
            return entry
        formats[entry["name"]] = entry
        return {"format": entry["name"]}

    packed = {name: {key: named(value) for key, value in item.meta.items()} for name, item in objects.packed.items()}
    activations = {name: named(entry) for name, entry in objects.formats.items()}
    return {"packed": packed, "activations": activations, "formats": formats}
