"""The blueprint of a captured module: its configuration and parameters, for targets that write parameters back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

__all__ = ["Blueprint", "blueprint_of", "give_blueprint", "needed_blueprint"]

#: Where a graph's blueprint stands in its ``meta``, which clones share and files do not hold.
BLUEPRINT = "qcompile.blueprint"


@dataclass(frozen=True)
class Blueprint:
    """A module as it came.

    Args:
        config: the content of ``config.json``: what differs from the defaults of its class.
        settings: the same with the defaults.
        parameters: by name of the state dict, as they came; those that share memory under each of their names.
        tied: names whose parameter is that of another name.
        linear: paths of modules that are ``torch.nn.Linear``.
        offsets: by path of a norm, the number that it adds to its weight; ``None`` where it does something else.
        dtype: the type in which its parameters are stored, such as ``bfloat16``.
        folder: the folder that it came from, which may have a tokenizer.
    """

    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    parameters: Mapping[str, torch.Tensor]
    tied: frozenset[str]
    linear: frozenset[str]
    offsets: Mapping[str, float | None]
    dtype: str
    folder: Path | None = None


def give_blueprint(model: ir.Model, blueprint: Blueprint | None) -> None:
    """Keep the blueprint of the module that a graph came from."""
    if blueprint is not None:
        model.graph.meta[BLUEPRINT] = blueprint


def blueprint_of(model: ir.Model) -> Blueprint | None:
    """The blueprint of the module that a graph came from; ``None`` for graphs that came from no module of a library."""
    return model.graph.meta.get(BLUEPRINT)


def needed_blueprint(model: ir.Model, path: str, target: str) -> Blueprint:
    """The same, where a target cannot do without.

    Raises:
        InputError: if there is none.
    """
    found = blueprint_of(model)
    if found is None:
        raise InputError(
            f"target '{target}' writes parameters back to the modules they came from, and '{path}' has neither the "
            "paths of modules nor a configuration: give a folder with config.json and weights, or a module of "
            "transformers (one graph of an encoder-decoder is none)"
        )
    return found
