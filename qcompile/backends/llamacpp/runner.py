"""Runs a GGUF file by transformers, which decodes its blocks with the package gguf, on the CPU, in float32."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from qcompile.errors import InputError, MissingExtraError, reason_of

__all__ = ["load"]

FILE = "model.gguf"


def load(folder: Path) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """The file as a function of named inputs.

    Raises:
        InputError: if there is none, or transformers cannot read it; from the function, if it does not take the inputs.
        MissingExtraError: if transformers is missing.
    """
    if not (Path(folder) / FILE).is_file():
        raise InputError(f"'{folder}' holds no {FILE}: it is no artifact of this target")
    for name in ("transformers", "gguf", "accelerate"):  # transformers reads the format with the last two
        if find_spec(name) is None:
            raise MissingExtraError(f"loading a GGUF file back with {name}", "gguf")
    import torch
    import transformers

    from qcompile.huggingface.called import call_named

    try:
        with redirect_stderr(io.StringIO()):  # it draws progress bars
            module = transformers.AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=FILE, dtype=torch.float32, local_files_only=True
            ).eval()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"transformers cannot load '{folder}': {reason_of(error)}") from error
    return lambda inputs: call_named(module, inputs)
