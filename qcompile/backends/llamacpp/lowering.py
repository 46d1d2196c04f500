"""Writes the parameters of a planned graph as a GGUF file, through the layouts of ``formats.layouts``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qcompile.backends.llamacpp.metadata import Family, family_of, scale_of, write_sizes, write_tokenizer
from qcompile.errors import TargetError
from qcompile.formats import Quantized
from qcompile.formats.layouts import to_gguf
from qcompile.ir.blueprint import Blueprint, blueprint_of
from qcompile.ir.graph import node_name
from qcompile.targets.parameters import Parameters, read_parameters, ties
from qcompile.targets.registry import Lowered
from qcompile.targets.target import Target

__all__ = ["lower"]

FILE = "model.gguf"

#: By the beginning of a format's name, the type of its blocks, and the number of files that mostly hold it.
TYPES = {
    "q4_0": ("Q4_0", 2), "q4_1": ("Q4_1", 3), "q5_0": ("Q5_0", 8), "q8_0": ("Q8_0", 7), "mxfp4": ("MXFP4", 38),
    "nvfp4": ("NVFP4", 39),
}  # fmt: skip


def lower(model: ir.Model, target: Target, folder: Path) -> Lowered:
    """Write ``model.gguf``.

    Args:
        model: the planned graph, which has the blueprint of its module.
        target: ``gguf``.
        folder: exists.

    Raises:
        TargetError: if the model is of no family that is known, or something in it cannot be said in the format.
    """
    import gguf

    blueprint = blueprint_of(model)
    if blueprint is None:
        raise TargetError(f"target '{target.name}' writes graphs of whole modules alone, and this graph came from none")
    family = family_of(blueprint.settings)
    found = read_parameters(model, blueprint)
    if found.transforms:
        raise TargetError("GGUF holds no online transforms: leave out --transforms, or name a kind that folds")
    names = _names(found, blueprint, family)
    writer = gguf.GGUFWriter(folder / FILE, family.name)
    kinds = [plan.weight.format.name for plan in found.plans.values()]
    most = _type_of(max(set(kinds), key=kinds.count)) if kinds else ("F32", 0)
    writer.add_name(Path(str(blueprint.settings.get("_name_or_path") or family.name)).name)
    writer.add_file_type(most[1])
    write_sizes(writer, blueprint.settings)
    reason = write_tokenizer(writer, blueprint.folder, blueprint.settings["vocab_size"])
    for name, content in found.floats.items():
        if name in names:
            _add_float(writer, names[name], _laid_out(content, name, blueprint, family), blueprint.dtype)
    said = {}
    for path, plan in found.plans.items():
        blocks, kind = _blocks(plan.weight, f"{path}.weight", blueprint, family)
        name = names[f"{path}.weight"]
        writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType[kind])
        if plan.weight.tensor_scale is not None:
            writer.add_tensor(scale_of(name), plan.weight.tensor_scale.reshape(1).numpy())
        said[node_name(found.nodes[path])] = {"kernel": kind, "stored_bytes": blocks.nbytes}
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Lowered((FILE,), said, {} if reason is None else {"tokenizer": reason})


def _names(found: Parameters, blueprint: Blueprint, family: Family) -> dict[str, str]:
    """The name in the file of each parameter; of those that are still one, one alone."""
    import gguf

    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.name)
    known = gguf.get_tensor_name_map(architecture, blueprint.settings["num_hidden_layers"])
    parameters = [*found.floats, *(f"{path}.weight" for path in found.plans)]
    if blueprint.tied and ties(blueprint, found.floats):
        parameters = [name for name in parameters if name != "lm_head.weight"]
    names: dict[str, str] = {}
    for name in parameters:
        other = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if other is None:
            raise TargetError(f"GGUF's architecture '{family.name}' has no tensor for '{name}'")
        names[name] = other
    return names


def _order(name: str, rows: int, blueprint: Blueprint, family: Family) -> torch.Tensor | None:
    """The order of the rows of queries and keys, whose halves alternate where neighbours are rotated."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
    if not family.interleaved or heads is None:
        return None
    config = blueprint.settings
    count = config.get(heads) or config["num_attention_heads"]
    return torch.arange(rows).view(count, 2, -1).transpose(1, 2).reshape(-1)


def _laid_out(content: torch.Tensor, name: str, blueprint: Blueprint, family: Family) -> torch.Tensor:
    order = _order(name, len(content), blueprint, family)
    return content if order is None else content[order]


def _add_float(writer: Any, name: str, content: torch.Tensor, dtype: str) -> None:
    """Write a tensor in the type of the source; vectors are always float32."""
    import gguf

    if content.ndim == 1 or dtype == "float32":
        writer.add_tensor(name, content.float().contiguous().numpy())
    elif dtype == "float16":
        writer.add_tensor(name, content.half().contiguous().numpy())
    else:
        raw = content.bfloat16().contiguous().view(torch.uint8).numpy()
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)


def _type_of(name: str) -> tuple[str, int]:
    return next(found for start, found in TYPES.items() if name.startswith(start))


def _blocks(q: Quantized, name: str, blueprint: Blueprint, family: Family) -> tuple[np.ndarray, str]:
    """The bytes of a weight, row by row, and the type of its blocks."""
    import gguf

    kind = _type_of(q.format.name)[0]
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    if q.shape[1] % block:
        raise TargetError(
            f"GGUF stores whole blocks, and '{name}' has {q.shape[1]} features, no multiple of {block}: leave it out "
            "with --exclude"
        )
    order = _order(name, q.shape[0], blueprint, family)
    if order is not None:
        zeros = None if q.zero_points is None else q.zero_points[order]
        q = replace(q, codes=q.codes[order], scales=q.scales[order], zero_points=zeros)
    return to_gguf(q).contiguous().numpy(), kind
