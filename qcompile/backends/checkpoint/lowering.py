"""Writes the parameters of a planned graph as a folder of Hugging Face in the layout of compressed-tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from qcompile.backends.checkpoint.layers import input_arguments, layer_tensors, layout_of, weight_arguments
from qcompile.errors import TargetError
from qcompile.ir.blueprint import Blueprint, blueprint_of
from qcompile.ir.graph import node_name
from qcompile.targets.parameters import Parameters, read_parameters, ties
from qcompile.targets.registry import Lowered
from qcompile.targets.target import Target

__all__ = ["lower"]

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

#: Bytes of parameters in one file.
SHARD_BYTES = 5_000_000_000

#: Said of online transforms, which this library has a configuration for and others do not read.
UNREAD = (
    "transform_config holds online transforms: vLLM applies them, transformers leaves them out and computes something "
    "else; qcompile run applies them"
)


def lower(model: ir.Model, target: Target, folder: Path) -> Lowered:
    """Write ``config.json`` and the parameters as safetensors.

    Args:
        model: the planned graph, which has the blueprint of its module.
        target: one of this backend's.
        folder: exists.

    Raises:
        TargetError: if something in the graph cannot be said in the layout.
    """
    blueprint = blueprint_of(model)
    if blueprint is None:
        raise TargetError(f"target '{target.name}' writes graphs of whole modules alone, and this graph came from none")
    found = read_parameters(model, blueprint)
    dtype = getattr(torch, blueprint.dtype)
    tensors, kernels, tied = {}, {}, ties(blueprint, found.floats)
    for name, content in found.floats.items():
        tensors[name] = content.to(dtype) if content.is_floating_point() else content
    for path, plan in found.plans.items():
        own = layer_tensors(plan, dtype)
        tensors |= {f"{path}.{name}": tensor for name, tensor in own.items()}
        size = sum(tensor.nbytes for tensor in own.values())
        kernels[node_name(found.nodes[path])] = {"kernel": layout_of(plan.weight.format), "stored_bytes": size}
    transforms, stored = _transforms(found)
    tensors |= stored
    if tied:  # one of the names is enough, as the configuration says
        tensors = {name: tensor for name, tensor in tensors.items() if name not in sorted(blueprint.tied)[:-1]}
    config = {**blueprint.config, "dtype": blueprint.dtype, "quantization_config": _quantization(found, blueprint)}
    config.pop("torch_dtype", None)
    if blueprint.tied:
        config["tie_word_embeddings"] = tied
    config["quantization_config"]["transform_config"] = transforms
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")
    files = _save(tensors, folder)
    notes: dict[str, Any] = {"layout": config["quantization_config"]["format"]}
    if blueprint.tied and not tied:
        notes["untied"] = sorted(blueprint.tied)
    if found.transforms:
        notes["online"] = UNREAD
    return Lowered((CONFIG, *files), kernels, notes)


def _quantization(found: Parameters, blueprint: Blueprint) -> dict[str, Any]:
    """``quantization_config``: groups of layers by format, and the linear layers in none."""
    alike: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for path, plan in found.plans.items():
        said = {  # rules by which scales of weights were found are no matter here
            "weights": weight_arguments(plan.weight.format),
            "input_activations": input_arguments(plan.scheme),
            "output_activations": None,
            "format": layout_of(plan.weight.format),
        }
        alike.setdefault(json.dumps(said), (said, []))[1].append(path)
    layouts = {said["format"] for said, _ in alike.values()}
    groups = {}
    for number, (said, paths) in enumerate(alike.values()):
        groups[f"group_{number}"] = {"targets": ["Linear"] if len(alike) == 1 else paths, **said}
    ignored = sorted(blueprint.linear - found.plans.keys())
    return {
        "config_groups": groups,
        "format": layouts.pop() if len(layouts) == 1 else "mixed-precision",
        "global_compression_ratio": None,
        "ignore": ignored,
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
    }


def _transforms(found: Parameters) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """``transform_config``, and the matrices of online transforms: one group for each that differs."""
    groups: dict[tuple[int, bytes], list[str]] = {}
    for path, block in found.transforms.items():
        groups.setdefault((len(block), block.numpy().tobytes()), []).append(path)
    config, tensors = {}, {}
    for number, ((size, _), paths) in enumerate(groups.items()):
        name = f"online{number}"
        apply = {"targets": paths, "location": "input", "inverse": False, "ignore": []}
        config[name] = {
            "type": "random-matrix", "apply": [apply], "randomize": False, "requires_grad": False, "head_dim": size,
            "precision": "torch.float32",
        }  # fmt: skip
        for path in paths:  # x is multiplied from the right
            tensors[f"{path}.{name}_input.weight"] = found.transforms[path].T.float().contiguous()
    return {"config_groups": config} if config else {}, tensors


def _save(tensors: Mapping[str, torch.Tensor], folder: Path) -> list[str]:
    """Write one file, or several with a list of what is where."""
    from safetensors.torch import save_file

    shards = list(_shards(tensors))
    if len(shards) == 1:
        save_file(_alone(shards[0]), folder / WEIGHTS, metadata={"format": "pt"})
        return [WEIGHTS]
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    places: dict[str, str] = {}
    for name, shard in zip(names, shards, strict=True):
        save_file(_alone(shard), folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [INDEX, *names]


def _shards(tensors: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name in sorted(tensors):
        if shard and size + tensors[name].nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensors[name]
        size += tensors[name].nbytes
    yield shard


def _alone(shard: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors that share no memory, as the file format wants them."""
    seen: set[int] = set()
    made: dict[str, torch.Tensor] = {}
    for name, tensor in shard.items():
        again = tensor.data_ptr() in seen
        made[name] = tensor.clone() if again else tensor.contiguous()
        seen.add(made[name].data_ptr())
    return made
