"""An encoder-decoder in parts, with the cache of what it has read and of what it has written."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from qcompile.errors import InputError
from qcompile.ir.modules import Adapted, Call, Wrapper

__all__ = ["PARTS", "part_of_pair", "step_of_pair"]

#: The graphs of an encoder-decoder: what reads, what begins to write, and what goes on.
PARTS = ("encoder", "decoder", "decoder_with_past")

_BATCH, _PAST, _READ = "batch_size", "past_sequence_length", "encoder_sequence_length"

#: The names that optimum has for what the decoder takes.
_INPUTS = {
    "decoder_input_ids": "input_ids", "attention_mask": "encoder_attention_mask",
    "encoder_outputs.last_hidden_state": "encoder_hidden_states",
}  # fmt: skip


def part_of_pair(module: Any, given: Mapping[str, Any], part: str) -> tuple[Any, dict[str, Any], bool]:
    """A module that is one of ``PARTS``, an example of its inputs, and whether it is captured with its cache.

    Args:
        module: an encoder-decoder of transformers.
        given: the arguments of an example, by name.
        part: which one.
    """
    if part == "decoder_with_past":
        return module, dict(given), True
    taken = _read_by(module.get_encoder(), given)
    if part == "encoder":
        return _PairEncoder(module), taken, False
    with torch.no_grad():
        read = module.get_encoder()(**taken)
    example = {"input_ids": given["decoder_input_ids"], "encoder_hidden_states": read.last_hidden_state}
    if "attention_mask" in given:
        example["encoder_attention_mask"] = given["attention_mask"]
    return _PairBegin(module), example, False


def _read_by(encoder: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    takes = inspect.signature(encoder.forward).parameters
    return {name: value for name, value in given.items() if name in takes and name != "use_cache"}


class _PairEncoder(Wrapper):
    """The encoder, whose weights keep the names that they have in the whole."""

    def forward(self, **given: Any) -> dict[str, Any]:
        """The states that the decoder reads."""
        pair: Any = self.module
        return {"last_hidden_state": pair.get_encoder()(**given).last_hidden_state}


class _PairBegin(Wrapper):
    """The decoder at the beginning of a text, under the names that optimum has for its inputs."""

    def forward(self, **given: Any) -> dict[str, Any]:
        """The logits of the decoder and its cache."""
        from transformers.modeling_outputs import BaseModelOutput

        read = BaseModelOutput(last_hidden_state=given["encoder_hidden_states"])
        masked = {"attention_mask": mask} if (mask := given.get("encoder_attention_mask")) is not None else {}
        result = self.module(decoder_input_ids=given["input_ids"], encoder_outputs=read, use_cache=True, **masked)
        return {name: value for name, value in result.items() if name != "encoder_last_hidden_state"}


def step_of_pair(
    module: Any, given: Mapping[str, Any], argument: str, inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> Adapted:
    """The decoder in the middle of a text; the encoder has read its input before.

    Args:
        module: an encoder-decoder of transformers.
        given: the arguments of an example, by name.
        argument: the name of its cache.
        inputs: names of inputs that are called otherwise.
        outputs: the same of outputs.

    Raises:
        InputError: if the example has no four tokens for the decoder.
    """
    tokens = given.get("decoder_input_ids")
    if tokens is None or tokens.shape[1] < 4:
        count = "none" if tokens is None else str(tokens.shape[1])
        raise InputError(f"cache=True needs an example of at least 4 decoder_input_ids, not {count}")
    encoder, past = module.get_encoder(), tokens.shape[1] // 2
    read = encoder(**_read_by(encoder, given))
    masked = {name: value for name, value in given.items() if name == "attention_mask"}
    shared = {"encoder_outputs": read, **masked, "use_cache": True}
    filled = module(decoder_input_ids=tokens[:, :past], **shared)
    cache = next(filled[name] for name in inputs if filled.get(name) is not None)
    example = {"decoder_input_ids": tokens[:, past:], **shared, argument: cache}
    axes: dict[str, dict[int, str]] = {
        "input_ids": {0: _BATCH, 1: "sequence_length"}, "encoder_attention_mask": {0: _BATCH, 1: _READ},
        "encoder_hidden_states": {0: _BATCH, 1: _READ},
    }  # fmt: skip
    for i in range(len(cache.self_attention_cache.layers)):
        for part in ("key", "value"):
            axes[f"past_key_values.{i}.decoder.{part}"] = {0: _BATCH, 2: _PAST}
            axes[f"past_key_values.{i}.encoder.{part}"] = {0: _BATCH, 2: _READ}
    return Adapted(_PairStep(module, argument), Call((), example), (), axes, {**inputs, **_INPUTS}, outputs)


class _PairStep(Wrapper):
    """A decoder with its cache, whose parts are as long as what was written, and as what was read."""

    def __init__(self, module: torch.nn.Module, argument: str) -> None:
        super().__init__(module)
        self._argument = argument

    def forward(self, **given: Any) -> dict[str, Any]:
        """The logits of the decoder, and the cache of what it has written: the other half stays as it was."""
        tokens, cache = given["decoder_input_ids"], given[self._argument]
        read = given["encoder_outputs"].last_hidden_state
        for half in (cache.self_attention_cache, cache.cross_attention_cache):
            length = half.layers[0].keys.shape[2]
            for part in [part for layer in half.layers for part in (layer.keys, layer.values)]:
                torch._check(part.shape[0] == tokens.shape[0])
                torch._check(part.shape[2] == length)
        torch._check(read.shape[0] == tokens.shape[0])
        torch._check(read.shape[1] == cache.cross_attention_cache.layers[0].keys.shape[2])
        result = self.module(**given)
        written = result[self._argument].self_attention_cache.layers
        return {"logits": result["logits"], self._argument: {f"{i}.decoder": layer for i, layer in enumerate(written)}}
