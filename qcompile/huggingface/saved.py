"""Folders as transformers saves models: a configuration, weights, and what goes along with them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from safetensors import SafetensorError

from qcompile.errors import InputError, MissingExtraError, reason_of, unknown
from qcompile.huggingface.pairs import PARTS, part_of_pair
from qcompile.ir.modules import adapted, call_of, named_inputs

__all__ = ["Batches", "Loaded", "along", "load_folder", "part_batches", "parts_of"]

#: By part of a model, batches of its inputs by name.
Batches = dict[str, list[dict[str, np.ndarray]]]

#: Files that go along with a model by the ends of their names: tokenizers, configurations, templates of prompts.
ALONG = (".json", ".txt", ".model", ".jinja", ".tiktoken")

#: Files of such names that do not: the lists of shards, and what an artifact calls its own.
OWN = (".index.json", "manifest.json")

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")

#: Sizes of example inputs: sequences, tokens of each, and samples of sound.
BATCH, LENGTH, SAMPLES = 2, 8, 16000


@dataclass(frozen=True)
class Loaded:
    """A model of a folder.

    Args:
        module: the model, in float32.
        example_inputs: by name of its arguments.
        cache: whether it is exported with its cache.
        along: the files that go along with it.
    """

    module: torch.nn.Module
    example_inputs: dict[str, Any]
    cache: bool
    along: tuple[Path, ...]


def load_folder(folder: Path, cache: bool | None = None, part: str | None = None) -> Loaded:
    """Load the model of a folder, or one graph of it.

    Args:
        folder: it has ``config.json`` and weights as safetensors.
        cache: whether it is to take its cache and return it; by default where it generates text from one.
        part: one of ``parts_of(folder)``; nothing goes along with a part.

    Raises:
        InputError: if something is missing from the folder, or its model needs inputs that are not known.
        MissingExtraError: if transformers is not installed.
    """
    if part is not None:
        _check_part(folder, part, cache)
    module = _module(folder)
    example = _example(module, folder)
    if part is not None:
        return Loaded(*part_of_pair(module, example, part), ())
    stepping = module.can_generate() and not module.config.is_encoder_decoder
    cached = stepping and not getattr(module, "_is_stateful", False) if cache is None else cache
    return Loaded(module, example, cached, along(folder))


def _module(folder: Path) -> Any:
    """The model of a folder, in float32."""
    config = _config(folder)
    kind = _class(folder, config)
    import transformers

    from qcompile.huggingface.blueprints import STORED

    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        module = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise InputError(f"transformers cannot load '{folder}': {reason_of(error)}") from error
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
    setattr(module, STORED, (folder, config.get("dtype") or config.get("torch_dtype") or "float32"))
    return module


def parts_of(folder: Path) -> tuple[str, ...]:
    """The graphs of a folder's model where it is an encoder-decoder that writes token by token; else nothing.

    Raises: as ``load_folder`` does; no weights are read.
    """
    config = _config(folder)
    kind = _class(folder, config)
    writes = kind.can_generate() and "decoder_input_ids" in inspect.signature(kind.forward).parameters
    return PARTS if writes and config.get("is_encoder_decoder") is True else ()


def part_batches(folder: Path, read: Callable[[ir.Model], Iterable[Mapping[str, np.ndarray]]]) -> Batches:
    """Data for each part of an encoder-decoder: what it is given when the model reads data for the whole.

    Args:
        folder: of the model.
        read: gives the data, for a graph of which there are inputs alone.

    Raises:
        InputError: if the data is not for the model's inputs, or too short to begin a text and go on.
    """
    module = _module(folder)
    made: Batches = {part: [] for part in PARTS}
    for batch in read(_takes(_example(module, folder))):
        given = {name: torch.from_numpy(np.array(array)) for name, array in batch.items()}
        for part in PARTS:
            one, example, cache = part_of_pair(module, given, part)
            with adapted(one, call_of(one, example), cache) as found:
                made[part].append({name: tensor.numpy() for name, tensor in named_inputs(found).items()})
    return made


def _takes(example: Mapping[str, torch.Tensor]) -> ir.Model:
    """A graph with the inputs of a module and nothing else; batch and length are open."""
    inputs = []
    for name, tensor in example.items():
        length = [f"{name}_length"] if tensor.ndim == 2 else tensor.shape[1:]
        dtype = ir.DataType.from_numpy(tensor.numpy().dtype)
        inputs.append(ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(["batch", *length])))
    return ir.Model(ir.Graph(inputs, [], nodes=[]), ir_version=10)


def _check_part(folder: Path, part: str, cache: bool | None) -> None:
    parts = parts_of(folder)
    if not parts:
        raise InputError(f"'{folder}' holds no encoder-decoder that writes token by token, so it has no part '{part}'")
    if part not in parts:
        raise InputError(unknown("part", part, parts))
    if cache is False:
        raise InputError(f"part '{part}' is a graph for writing with a cache: leave out --no-cache, or the part")


def _config(folder: Path) -> dict[str, Any]:
    """What a folder says of its model."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"'{folder}' is a folder without config.json, so it holds no model of Hugging Face")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' is not readable as JSON: {error}") from error
    if not isinstance(config, dict) or not config.get("architectures"):
        raise InputError(f"'{path}' names no architectures, so the class of its model is not known")
    if not any(file for pattern in WEIGHTS for file in folder.glob(pattern)):
        raise InputError(
            f"'{folder}' has a config.json, but no weights: model.safetensors, or shards of it, is missing"
        )
    return config


def _class(folder: Path, config: dict[str, Any]) -> Any:
    """The class of a folder's model."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(f"'{folder}', a folder of Hugging Face,", "hf") from error
    name = config["architectures"][0]
    kind = getattr(transformers, name, None)
    if kind is None:
        version = transformers.__version__
        own = " (its code is a part of the folder)" if "auto_map" in config else ""
        raise InputError(f"'{folder}' holds a {name}, which transformers {version} does not have{own}")
    return kind


def along(folder: Path) -> tuple[Path, ...]:
    """The files of a folder that go along with its model."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return tuple(file for file in files if file.name.endswith(ALONG) and not file.name.endswith(OWN))


# -- example inputs ----------------------------------------------------------------------------------------------------


def _example(module: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Random inputs for a model, by its signature and its configuration."""
    parameters = inspect.signature(module.forward).parameters
    config, main = module.config, module.main_input_name
    text = config.get_text_config()
    made: dict[str, torch.Tensor] = {}
    both = "pixel_values" in parameters and "input_ids" in parameters and not module.can_generate()
    draw = torch.Generator().manual_seed(0)
    if main == "input_ids" or both:
        made["input_ids"] = _tokens(text, LENGTH, draw)
        if "attention_mask" in parameters:
            made["attention_mask"] = torch.ones_like(made["input_ids"])
        if "token_type_ids" in parameters and (getattr(text, "type_vocab_size", None) or 0) > 1:
            made["token_type_ids"] = torch.zeros_like(made["input_ids"])
    if main == "pixel_values" or both:
        made["pixel_values"] = torch.randn(BATCH, *_image(config), generator=draw)
    if main == "input_features" and hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
        frames = 2 * config.max_source_positions  # the encoder halves them
        made["input_features"] = torch.randn(BATCH, config.num_mel_bins, frames, generator=draw)
    if main == "input_values":
        made["input_values"] = torch.randn(BATCH, SAMPLES, generator=draw)
    if not made:
        raise InputError(
            f"'{folder}' holds a {type(module).__name__}, whose inputs are not known here: load it in Python and "
            "export the module with example_inputs"
        )
    if config.is_encoder_decoder and "decoder_input_ids" in parameters:
        made["decoder_input_ids"] = _tokens(text, LENGTH - 2, draw)
    return made


def _tokens(config: Any, length: int, draw: torch.Generator) -> torch.Tensor:
    most = getattr(config, "max_position_embeddings", None) or length
    return torch.randint(0, config.vocab_size, (BATCH, min(length, most)), generator=draw)


def _image(config: Any) -> tuple[int, int, int]:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    return getattr(vision, "num_channels", 3), height, width
