"""The settings by which onnxruntime-genai runs a decoder: ``genai_config.json`` beside the graph, of generic type.

Everything follows from the graph but the numbers of special tokens, which stand in the files that go along with a model
of Hugging Face.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qcompile.errors import InputError
from qcompile.ir.cache_pairs import CachePair, cache_pairs
from qcompile.ir.graph import static
from qcompile.ir.required import name_of
from qcompile.targets.cache_plans import CachePlan

__all__ = ["FILE", "check_caches", "genai_settings", "write_genai"]

FILE = "genai_config.json"

#: Inputs beside caches that onnxruntime-genai fills in.
_FILLED = ("input_ids", "attention_mask", "position_ids")

#: Where files that go along say numbers of special tokens.
_SAID = ("generation_config.json", "config.json")

#: Positions where no file says how many a model knows.
_CONTEXT = 2048


def write_genai(model: ir.Model, folder: Path, along: Iterable[Path]) -> str:
    """Write the settings of a lowered graph, and return the name of the file."""
    (folder / FILE).write_text(json.dumps(genai_settings(model, _said(along)), indent=1) + "\n")
    return FILE


def _said(along: Iterable[Path]) -> dict[str, Any]:
    """The settings of a model's own files, those of generation first."""
    files = {path.name: path for path in along}
    found: dict[str, Any] = {}
    for name in reversed(_SAID):
        if name in files:
            found |= {key: value for key, value in json.loads(files[name].read_text()).items() if value is not None}
    return found


def check_caches(plans: Iterable[CachePlan]) -> None:
    """Refuse caches that onnxruntime-genai would take for others: it tells their sizes by their types.

    Raises:
        InputError: if a format is none of integers of 8 or 4 bits.
    """
    for plan in plans:
        if not plan.format.plain and (not plan.format.integers or plan.format.bits < 4):
            raise InputError(
                f"onnxruntime-genai has caches of integers of 8 and 4 bits, and '{plan.format.name}' is none: take "
                "int8-channel or int4-channel"
            )


def genai_settings(model: ir.Model, said: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``genai_config.json``.

    Args:
        model: the graph.
        said: settings of the model of Hugging Face: ``eos_token_id``, ``max_position_embeddings`` and others.

    Raises:
        InputError: if onnxruntime-genai cannot run the graph: it knows tokens, masks, positions, and caches of keys
            and values that are numbered by layer.
    """
    caches = [pair for pair in cache_pairs(model) if _role(pair)]
    pasts = {name_of(pair.past) for pair in caches}
    names = [value.name for value in model.graph.inputs if value.name not in pasts]
    if "input_ids" not in names or (odd := [name for name in names if name not in _FILLED]):
        others = ", ".join(map(str, odd)) if "input_ids" in names else "no input_ids"
        raise InputError(
            f"onnxruntime-genai fills in {', '.join(_FILLED)} and caches, and the graph has {others}: "
            "a cache needs static scales, as int8-channel has"
        )
    keys, values = _by_role(caches)
    logits = next((value for value in model.graph.outputs if value.name == "logits"), None)
    vocabulary = None if logits is None or logits.shape is None else static(logits.shape[-1])
    if vocabulary is None:
        raise InputError("onnxruntime-genai needs an output 'logits' of a stated size")
    heads = static((keys[0].past.shape or [None] * 2)[1]) or 1
    size = int(said.get("head_dim") or 0) or _head_size(keys[0])
    queries = int(said.get("num_attention_heads") or heads)
    end = said.get("eos_token_id", 0)
    first = end[0] if isinstance(end, list) else end
    context = int(said.get("max_position_embeddings") or _CONTEXT)
    return {
        "model": {
            "type": "decoder", "vocab_size": vocabulary, "context_length": context,
            "bos_token_id": said.get("bos_token_id", first), "eos_token_id": end,
            "pad_token_id": said.get("pad_token_id", first),
            "decoder": {
                "filename": "model.onnx",
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "head_size": size, "hidden_size": int(said.get("hidden_size") or queries * size),
                "num_attention_heads": queries, "num_key_value_heads": heads, "num_hidden_layers": len(keys),
                "inputs": {name: name for name in names}
                | {"past_key_names": _pattern(keys, "past"), "past_value_names": _pattern(values, "past")},
                "outputs": {"logits": "logits", "present_key_names": _pattern(keys, "present"),
                            "present_value_names": _pattern(values, "present")},
            },
        },
        "search": {"max_length": context, "do_sample": False, "past_present_share_buffer": False},
    }  # fmt: skip


def _role(pair: CachePair) -> str | None:
    """The word that the name of a cache ends with, if it is one that onnxruntime-genai knows."""
    last = name_of(pair.past).rpartition(".")[2]
    return last if pair.axis == 2 and last in ("key", "value") else None


def _by_role(caches: list[CachePair]) -> tuple[list[CachePair], list[CachePair]]:
    keys, values = ([pair for pair in caches if _role(pair) == word] for word in ("key", "value"))
    if not keys or len(keys) != len(values):
        raise InputError("onnxruntime-genai needs caches named past_key_values.N.key and past_key_values.N.value")
    return keys, values


def _pattern(pairs: list[CachePair], side: str) -> str:
    """The names of all layers, with ``%d`` for the number."""
    names = [name_of(getattr(pair, side)) for pair in pairs]
    made = re.sub(r"\d+", "%d", names[0], count=1)
    if [made.replace("%d", str(layer)) for layer in range(len(names))] != names:
        raise InputError(f"onnxruntime-genai needs caches that are numbered by layer, not {names[0]}, {names[-1]}")
    return made


def _head_size(pair: CachePair) -> int:
    """Features of a head: as many as the cache has, or twice that where two codes share a byte."""
    size = static((pair.past.shape or [None] * 4)[3]) or 0
    return size * 2 if pair.past.dtype is ir.DataType.UINT8 else size
