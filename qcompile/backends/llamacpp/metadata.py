"""The keys of a GGUF file: sizes of the architecture out of ``config.json``, and the tokenizer of the folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.errors import TargetError, unknown

__all__ = ["FAMILIES", "Family", "family_of", "scale_of", "write_sizes", "write_tokenizer"]


@dataclass(frozen=True)
class Family:
    """Models that llama.cpp computes alike.

    Args:
        name: of the architecture.
        interleaved: whether it rotates neighbouring features of queries and keys, so that rows are laid out anew.
    """

    name: str
    interleaved: bool = False


#: By ``model_type``: decoders of RMS norms, rotary positions and gated products.
FAMILIES = {
    "llama": Family("llama", interleaved=True),
    "mistral": Family("llama", interleaved=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a model.

    Raises:
        TargetError: if its sizes are not known to be what llama.cpp needs.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise TargetError(f"target 'gguf': {unknown('model_type', str(kind), FAMILIES)}")
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        raise TargetError(
            f"target 'gguf' writes plain rotary positions, not those of rope_type '{scaling['rope_type']}'"
        )
    return FAMILIES[kind]


def scale_of(name: str) -> str:
    """The tensor that holds the second level of a weight, one float32: llama.cpp multiplies products by it."""
    return name.removesuffix("weight") + "scale"


def write_sizes(writer: Any, config: Mapping[str, Any]) -> None:
    """Write the sizes of a model.

    Args:
        writer: a ``GGUFWriter``.
        config: with every default spelled out.
    """
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head = config.get("head_dim") or width // heads
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0))
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_vocab_size(config["vocab_size"])


def write_tokenizer(writer: Any, folder: Path | None, size: int) -> str | None:
    """Write the tokenizer of a folder; the reason if there is none that can be written.

    Args:
        size: tokens that the model knows; those that the tokenizer lacks are filled up.
    """
    if folder is None or not (folder / "tokenizer.json").is_file():
        return "the source has no tokenizer.json: llama.cpp can load the file, and takes no text"
    import gguf

    vocabulary = None
    for kind in (gguf.vocab.BpeVocab, gguf.vocab.LlamaHfVocab):
        try:
            vocabulary = kind(folder)
            break
        except (FileNotFoundError, TypeError, ValueError, KeyError, ImportError) as error:
            reason = str(error)
    if vocabulary is None:
        return f"gguf cannot read its tokenizer.json: {reason}"
    tokens, scores, kinds = [], [], []
    for text, score, kind in vocabulary.all_tokens():
        tokens.append(text)
        scores.append(score)
        kinds.append(kind)
    missing = range(len(tokens), size)
    tokens += [f"[PAD{number}]" for number in missing]
    scores += [-1000.0] * len(missing)
    kinds += [gguf.TokenType.UNUSED] * len(missing)
    bytes_pairs = vocabulary.tokenizer_model == "gpt2"
    writer.add_tokenizer_model(vocabulary.tokenizer_model)
    if bytes_pairs:
        writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    if not bytes_pairs:
        writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    gguf.SpecialVocab(folder, load_merges=bytes_pairs, n_vocab=len(tokens)).add_to_gguf(writer, quiet=True)
    if bytes_pairs:
        return (
            "tokenizer.ggml.pre is 'default': llama.cpp has other ways to cut text for some families, set it for yours"
        )
    return None
