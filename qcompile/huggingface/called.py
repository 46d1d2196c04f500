"""Modules of transformers called as their graphs are: named arrays in, named arrays out, caches in parts."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stderr
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

import qcompile.huggingface.adaptation  # noqa: F401  (knows the parts of caches)
from qcompile.errors import InputError, reason_of
from qcompile.ir.trees import leaves

__all__ = ["call_named"]

#: What a module of transformers calls its cache, and what graphs call its parts.
_PAST, _PRESENT = "past_key_values", "present"


def call_named(module: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The results of a module by the names of its graph's outputs.

    Args:
        inputs: by the names of the graph's inputs; with ``past_key_values.N.key`` a decoder goes on with its cache.

    Raises:
        InputError: if the module does not take them.
    """
    given = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
    cache = any(name.startswith(f"{_PAST}.") for name in given)
    arguments = {name: tensor for name, tensor in given.items() if not name.startswith(f"{_PAST}.")}
    if cache:
        arguments[_PAST] = _cache(given)
    try:
        with torch.no_grad(), redirect_stderr(io.StringIO()):
            result = module(**arguments, **({"use_cache": cache} if hasattr(module.config, "use_cache") else {}))
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise InputError(f"the module does not take these inputs: {reason_of(error)}") from error
    return {name.replace(_PAST, _PRESENT, 1): tensor.numpy() for name, tensor in dict(leaves(result)).items()}


def _cache(given: Mapping[str, Any]) -> Any:
    made = DynamicCache()
    layers = sum(name.startswith(f"{_PAST}.") and name.endswith(".key") for name in given)
    for layer in range(layers):
        made.update(given[f"{_PAST}.{layer}.key"], given[f"{_PAST}.{layer}.value"], layer)
    return made
