"""Folders as transformers saves models: a configuration, weights, and what goes along with them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from qcompile.errors import InputError, MissingExtraError, reason_of

__all__ = ["Loaded", "load_folder"]

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


def load_folder(folder: Path, cache: bool | None = None) -> Loaded:
    """Load the model of a folder.

    Args:
        folder: it has ``config.json`` and weights as safetensors.
        cache: whether it is to take its cache and return it; by default where it generates text from one.

    Raises:
        InputError: if something is missing from the folder, or its model needs inputs that are not known.
        MissingExtraError: if transformers is not installed.
    """
    config = _config(folder)
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(f"'{folder}', a folder of Hugging Face,", "hf") from error
    kind = _class(folder, config)
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        module = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise InputError(f"transformers cannot load '{folder}': {reason_of(error)}") from error
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
    stepping = module.can_generate() and not module.config.is_encoder_decoder
    cached = stepping and not getattr(module, "_is_stateful", False) if cache is None else cache
    return Loaded(module, _example(module, folder), cached, tuple(_along(folder)))


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
    import transformers

    name = config["architectures"][0]
    kind = getattr(transformers, name, None)
    if kind is None:
        version = transformers.__version__
        own = " (its code is a part of the folder)" if "auto_map" in config else ""
        raise InputError(f"'{folder}' holds a {name}, which transformers {version} does not have{own}")
    return kind


def _along(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name.endswith(ALONG) and not file.name.endswith(OWN):
            yield file


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
