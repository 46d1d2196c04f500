"""Blueprints of modules of transformers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from qcompile.ir.blueprint import Blueprint

__all__ = ["STORED", "draw_blueprint"]

#: The attribute in which a module keeps the folder that it came from, and the type of its parameters there.
STORED = "qcompile_stored"


def draw_blueprint(module: torch.nn.Module) -> Blueprint | None:
    """The blueprint of a module; ``None`` if it is none of transformers, which a configuration describes."""
    if not isinstance(module, PreTrainedModel):
        return None
    parameters = module.state_dict()
    config = {**module.config.to_diff_dict(), "architectures": [type(module).__name__]}
    settings = module.config.to_dict()
    modules = dict(module.named_modules())
    linear = frozenset(path for path, part in modules.items() if type(part) is torch.nn.Linear)
    offsets = {path: _offset(part) for path, part in modules.items() if _scales(part)}
    folder, stored = getattr(module, STORED, (None, str(next(iter(parameters.values())).dtype)))
    return Blueprint(
        config, settings, parameters, _tied(parameters), linear, offsets, stored.removeprefix("torch."), folder
    )


def _tied(parameters: Mapping[str, torch.Tensor]) -> frozenset[str]:
    """Names of parameters that share the memory of others."""
    seen: dict[tuple[Any, ...], list[str]] = {}
    for name, value in parameters.items():
        seen.setdefault((value.data_ptr(), tuple(value.shape), value.stride()), []).append(name)
    return frozenset(name for names in seen.values() if len(names) > 1 for name in names)


def _scales(module: torch.nn.Module) -> bool:
    """Whether a module has a vector for a weight, as norms have."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 1 and not list(module.children())


def _offset(module: torch.nn.Module) -> float | None:
    """The number that a norm adds to its weight: where the weight is the negative of it, the output is zero."""
    probe = copy.deepcopy(module).float()
    weight, bias = probe._parameters["weight"], probe._parameters.get("bias")
    assert weight is not None
    rows = torch.linspace(-1, 2, 3 * len(weight), device=weight.device).view(3, -1)
    with torch.no_grad():
        if bias is not None:
            bias.zero_()
        for offset in (0.0, 1.0):
            weight.fill_(-offset)
            try:
                if not probe(rows).any():
                    return offset
            except (RuntimeError, TypeError, ValueError):  # it takes no rows of features, so it is no norm
                return None
    return None
