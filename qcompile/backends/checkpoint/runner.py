"""Runs a checkpoint as its users do: transformers and compressed-tensors load it, on the CPU, in float32."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.errors import InputError, MissingExtraError, reason_of

__all__ = ["load", "load_module"]


def load(folder: Path) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """The checkpoint as a function of named inputs.

    Raises:
        InputError: if it is no checkpoint, or (from the function) does not take the inputs.
        MissingExtraError: if transformers or compressed-tensors is missing.
    """
    module = load_module(folder)
    from qcompile.huggingface.called import call_named

    return lambda inputs: call_named(module, inputs)


def load_module(folder: Path) -> Any:
    """The module of a checkpoint, with its online transforms.

    Raises: as ``load``.
    """
    for name in ("transformers", "compressed_tensors"):
        if find_spec(name) is None:
            raise MissingExtraError(f"loading a checkpoint back with {name}", "hf")
    import torch
    import transformers

    path = Path(folder) / "config.json"
    if not path.is_file():
        raise InputError(f"'{folder}' is no checkpoint: it has no config.json")
    config = json.loads(path.read_text(encoding="utf-8"))
    kind = getattr(transformers, config["architectures"][0])
    try:
        with redirect_stderr(io.StringIO()), _quiet():  # both packages draw progress bars
            module = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **_decoded(config)).eval()
            _round_inputs(module, config, Path(folder))
            _apply_online(module, config, Path(folder))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"transformers cannot load '{folder}': {reason_of(error)}") from error
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """Let transformers report errors alone: the matrices of online transforms are none that it knows."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _decoded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The argument by which weights are decoded as they are loaded, where all layers are packed alike.

    Later, FP4 is decoded to bfloat16, which modules in float32 do not take, and packed zero points are refused; so
    early, all groups are read as if they were the first.
    """
    from transformers import CompressedTensorsConfig

    several = len(config["quantization_config"]["config_groups"]) > 1
    return {} if several else {"quantization_config": CompressedTensorsConfig(dequantize=True)}


def _apply_online(module: Any, config: Mapping[str, Any], folder: Path) -> None:
    """Put online transforms in front of their layers: transformers reads no ``transform_config``."""
    groups = config["quantization_config"].get("transform_config", {}).get("config_groups")
    if not groups:
        return
    from compressed_tensors.transform import TransformConfig, apply_transform_config

    apply_transform_config(module, TransformConfig(config_groups=groups))
    _fill(module, folder, tuple(f".{name}_input.weight" for name in groups))


def _round_inputs(module: Any, config: Mapping[str, Any], folder: Path) -> None:
    """Let layers round their inputs: decoded weights come without that."""
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    said = config["quantization_config"]
    groups = {name: {**group, "weights": None} for name, group in said["config_groups"].items()}
    rounding = {name: group for name, group in groups.items() if group["input_activations"]}
    if rounding:
        only = {"config_groups": rounding, "ignore": said["ignore"], "format": said["format"]}
        apply_quantization_config(module, QuantizationConfig(**only))
        _fill(module, folder, (".input_global_scale",))


def _fill(module: Any, folder: Path, ends: tuple[str, ...]) -> None:
    """Read parameters that transformers does not know from the files, by the ends of their names."""
    import torch
    from safetensors import safe_open

    own = dict(module.named_parameters(remove_duplicate=False))
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stored, torch.no_grad():
            for name in (name for name in stored.keys() if name.endswith(ends)):  # noqa: SIM118  (it is no mapping)
                own[name].copy_(stored.get_tensor(name))
