"""Writes a planned graph as a program of torch and Triton: a module, kernels, weights, compiled kernels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common

from qcompile.backends.gpu.codegen import Program
from qcompile.backends.gpu.fusions import fuse
from qcompile.backends.gpu.module import stored_name, write_module
from qcompile.backends.gpu.names import Names
from qcompile.backends.gpu.objects import Objects
from qcompile.backends.gpu.placing import place_sites, place_transforms
from qcompile.backends.gpu.storage import write_safetensors
from qcompile.graph import DOMAIN, release
from qcompile.targets import Lowered, Plan, Target

__all__ = ["lower"]

MODULE, WEIGHTS, LAYOUT = "model.py", "weights.safetensors", "layout.json"
_COPIED = ("kernels", "runtime")
_KEPT = ("RMSNorm", "LayerNorm", "SelectiveScan")


def lower(model: ir.Model, plans: Sequence[Plan], target: Target, folder: Path) -> Lowered:
    """Translate a graph and write the program.

    Args:
        model: the graph; it is edited.
        plans: one for each site that is quantized; those without a weight are left alone.
        target: whose architectures the weights are packed and the kernels are compiled for.
        folder: exists; gets ``model.py``, ``weights.safetensors``, ``layout.json`` and the folders ``kernels``,
            ``runtime`` and ``cubins``.

    Raises:
        InputError: if a plan names no node.
        TargetError: if an operator has no row in the lowering table, or a format no kernel.
    """
    arches = architectures(target)
    _prepare(model)
    objects = Objects(Names())
    place_transforms(model, objects)
    _inline(model)
    sites = place_sites(model, plans, objects, arches[0])
    fuse(model)
    program = Program(model, objects.names)
    title = f"{model.graph.name or 'A model'} for {target.name} ({', '.join(arches)})"
    source = write_module(model, program, objects, title)
    _write(folder, source, program, objects)
    files = (MODULE, WEIGHTS, LAYOUT, *_COPIED)
    return Lowered(files, sites, {"architectures": list(arches), **program.notes})


def architectures(target: Target) -> tuple[str, ...]:
    """Those that a target compiles for, the one that weights are packed for first."""
    from qcompile.backends.gpu.manifest import ARCHITECTURES

    return ARCHITECTURES[target.name]


def _prepare(model: ir.Model) -> None:
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if any(value.shape is None for node in model.graph for value in node.outputs):
        common.ShapeInferencePass()(model)
    common.CommonSubexpressionEliminationPass()(model)


def _inline(model: ir.Model) -> None:
    """Every function but those that the lowering table has a row for."""
    kept = {key: f for key, f in model.functions.items() if f.domain == DOMAIN and f.name in _KEPT}
    for key in kept:
        del model.functions[key]
    if model.functions:
        common.InlinePass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    model.functions.update(kept)


def _write(folder: Path, source: str, program: Program, objects: Objects) -> None:
    """Nothing is written before the whole graph is translated."""
    (folder / MODULE).write_text(source)
    for name in _COPIED:
        shutil.copytree(Path(__file__).parent / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    tensors: dict[str, Any] = {}
    for name, packed in objects.packed.items():
        for part, array in packed.tensors.items():
            tensors[f"{name}.{part}"] = (array.dtype, array.shape, lambda array=array: array)
    for name, (value, _) in program.weights.items():
        if stored_name(program, name) == name and f"self.{name}" in source:
            tensor = value.const_value
            tensors[name] = (tensor.dtype.numpy(), tuple(tensor.shape), lambda tensor=tensor: _content(tensor))
    write_safetensors(folder / WEIGHTS, tensors)
    (folder / LAYOUT).write_text(json.dumps(_layout(objects), indent=1) + "\n")


def _content(tensor: ir.TensorProtocol):
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
