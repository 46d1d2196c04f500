"""Modules of transformers as they are captured: without their cache, or with it as inputs and outputs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import cache_utils

from qcompile.errors import InputError
from qcompile.huggingface.blueprints import draw_blueprint
from qcompile.huggingface.pairs import step_of_pair
from qcompile.huggingface.tracing import traceable
from qcompile.ir.modules import Adapted, Call, Wrapper
from qcompile.ir.trees import Kind, register
from qcompile.notes import Declined

__all__ = ["adapt", "cache_argument"]

#: The names that an argument and a result have that hold a cache.
CACHES = ("cache", "past_key_values", "cache_params")

#: Tokens that an example of a decoder with its cache needs: some of them are in the cache, and torch takes a size of
#: one for a constant.
LEAST_TOKENS = 4


@contextmanager
def adapt(module: torch.nn.Module, call: Call, cache: bool) -> Iterator[Adapted]:
    """A module of transformers that can be traced.

    Args:
        module: the module.
        call: its example.
        cache: whether its cache becomes inputs and outputs; without it the cache is left out, unless the call has one.

    Raises:
        InputError: if it has no cache, or the example is too short.
    """
    with traceable(module), torch.no_grad():
        found = _with_cache(module, call) if cache else _without_cache(module, call)
        yield replace(found, blueprint=draw_blueprint(module))


def _without_cache(module: torch.nn.Module, call: Call) -> Adapted:
    """A module as it is called, and without its cache unless the call says something of it."""
    parameters = inspect.signature(module.forward).parameters
    given = any(isinstance(value, cache_utils.Cache) for value in (*call.args, *call.kwargs.values()))
    if given or "use_cache" in call.kwargs or "use_cache" not in parameters:
        return Adapted(module, call, inputs=_INPUTS, outputs=_OUTPUTS)
    what, why = "returning its cache", "cache=True exports a decoder with its cache as inputs and outputs"
    notes = (Declined("*", what, why),) if getattr(getattr(module, "config", None), "use_cache", False) else ()
    return Adapted(module, Call(call.args, {**call.kwargs, "use_cache": False}), notes)


# -- caches ------------------------------------------------------------------------------------------------------------

_INPUTS, _OUTPUTS = dict.fromkeys(CACHES, "past_key_values"), dict.fromkeys(CACHES, "present")

_LAYER = {"keys": "key", "values": "value"}


def _layer_parts(layer: Any) -> dict[str, Any]:
    return {_LAYER.get(name, name): part for name, part in vars(layer).items()}


def _layer_rebuilt(layer: Any, parts: Mapping[str, Any]) -> Any:
    made = copy.copy(layer)
    own = {name: attribute for attribute, name in _LAYER.items()}
    made.__dict__.update({own.get(name, name): part for name, part in parts.items()})
    return made


def _cache_parts(cache: Any) -> dict[str, Any]:
    return {str(i): layer for i, layer in enumerate(cache.layers)}


def _cache_rebuilt(cache: Any, parts: Mapping[str, Any]) -> Any:
    made = copy.copy(cache)
    made.layers = list(parts.values())
    return made


def _pair_parts(pair: Any) -> dict[str, Any]:
    halves = {"decoder": pair.self_attention_cache, "encoder": pair.cross_attention_cache}
    parts = {f"{i}.{half}": layer for half, cache in halves.items() for i, layer in enumerate(cache.layers)}
    return dict(sorted(parts.items(), key=lambda part: int(part[0].partition(".")[0])))  # as optimum counts them


def _pair_rebuilt(pair: Any, parts: Mapping[str, Any]) -> Any:
    made = copy.copy(pair)
    made.is_updated = dict(pair.is_updated)
    for name, attribute in (("decoder", "self_attention_cache"), ("encoder", "cross_attention_cache")):
        layers = {key: part for key, part in parts.items() if key.endswith(name)}
        setattr(made, attribute, _cache_rebuilt(getattr(pair, attribute), layers))
    return made


register(cache_utils.Cache, Kind(_cache_parts, _cache_rebuilt))
register(cache_utils.EncoderDecoderCache, Kind(_pair_parts, _pair_rebuilt))
for _base in ("CacheLayerMixin", "LinearAttentionCacheLayerMixin"):
    if hasattr(cache_utils, _base):
        register(getattr(cache_utils, _base), Kind(_layer_parts, _layer_rebuilt))


def cache_argument(module: torch.nn.Module) -> str | None:
    """The name of the argument in which a module takes its cache."""
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in CACHES if name in parameters), None)


def _with_cache(module: torch.nn.Module, call: Call) -> Adapted:
    """A decoder in the middle of a text: some tokens of the example are in the cache, the others are its input."""
    name, argument = type(module).__name__, cache_argument(module)
    parameters = inspect.signature(module.forward).parameters
    given = dict(zip(parameters, call.args, strict=False)) | dict(call.kwargs)
    tokens = given.get("input_ids")
    if argument is not None and "decoder_input_ids" in parameters:
        return step_of_pair(module, given, argument, _INPUTS, _OUTPUTS)
    if argument is None or tokens is None:
        raise InputError(f"cache=True needs a decoder that takes input_ids and a cache, which {name} is not")
    if getattr(module, "_is_stateful", False):
        raise InputError(f"cache=True needs a cache with keys and values, and {name} keeps a state: leave it out")
    if tokens.shape[1] < LEAST_TOKENS:
        raise InputError(f"cache=True needs an example of at least {LEAST_TOKENS} tokens, not {tokens.shape[1]}")
    past = tokens.shape[1] // 2
    given["attention_mask"] = mask = given.get("attention_mask", torch.ones_like(tokens))
    positions = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if "position_ids" in parameters else {}
    plain = {argument: cache_utils.DynamicCache()}  # each layer keeps the whole text: the mask has the windows
    start = {key: value[:, :past] for key, value in {**given, **positions}.items() if key in _ALONG}
    found = module(**{**given, **start, **plain, "use_cache": True})
    filled = next((found[key] for key in CACHES if found.get(key) is not None), None)
    if filled is None:
        raise InputError(f"cache=True needs a module that returns a cache, which {name} does not")
    rest = {key: value[:, past:] for key, value in {**given, **positions}.items() if key in _ALONG[:-1]}
    inputs = {
        "input_ids": rest["input_ids"],
        "attention_mask": mask,
        **{k: v for k, v in rest.items() if k in positions},
    }
    others = {key: value for key, value in given.items() if key not in (*_ALONG, argument, "use_cache")}
    example = {**inputs, **others, argument: filled, "use_cache": True}
    layers = len(filled.layers)
    cached = {f"past_key_values.{i}.{part}": {0: _BATCH, 2: _PAST} for i in range(layers) for part in ("key", "value")}
    along = {0: _BATCH, 1: "sequence_length"}
    axes = {
        "input_ids": along,
        "position_ids": along,
        "attention_mask": {0: _BATCH, 1: "total_sequence_length"},
    } | cached
    return Adapted(_Step(module, argument), Call((), example), (), axes, _INPUTS, _OUTPUTS)


class _Step(Wrapper):
    """A decoder with its cache, all parts of which are of one length, and a mask that covers them and the input."""

    def __init__(self, module: torch.nn.Module, argument: str) -> None:
        super().__init__(module)
        self._argument = argument

    def forward(self, **given: Any) -> Any:
        """The result of the decoder."""
        tokens, mask, layers = given["input_ids"], given["attention_mask"], given[self._argument].layers
        past = layers[0].keys.shape[2]
        for part in [part for layer in layers for part in (layer.keys, layer.values)]:
            torch._check(part.shape[0] == tokens.shape[0])
            torch._check(part.shape[2] == past)
        torch._check(mask.shape[0] == tokens.shape[0])
        torch._check(mask.shape[1] == past + tokens.shape[1])
        return self.module(**given)


_BATCH, _PAST = "batch_size", "past_sequence_length"

#: Inputs with one column for each token; the mask, the last of them, has those of the cache too.
_ALONG = ("input_ids", "position_ids", "attention_mask")
