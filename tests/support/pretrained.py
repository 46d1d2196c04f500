"""Tiny models of libraries with random weights: two layers of width 64, and a call of each as users write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["DIFFUSION", "PRETRAINED", "make", "tokens"]

VOCABULARY = 256
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
_STATE = dict(**_SMALL, **_SPECIAL, state_size=8)
_TEXT = dict(**_SMALL, **_SPECIAL, num_attention_heads=4, intermediate_size=128, max_position_embeddings=128)
_DECODER = dict(**_TEXT, num_key_value_heads=2)
_TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_IMAGE = dict(**_TOWER, image_size=32, patch_size=8)
_SPEECH = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "num_mel_bins": 16,
    "max_source_positions": 50, "max_target_positions": 64, "vocab_size": VOCABULARY, "decoder_start_token_id": 1,
}  # fmt: skip

_WINDOW = {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
_TRANSLATION = {"vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
                    "decoder_start_token_id": 0, "pad_token_id": 0}  # fmt: skip
_PAIR = {
    "text_config": dict(**_TOWER, vocab_size=VOCABULARY, max_position_embeddings=16, projection_size=64),
    "vision_config": _IMAGE,
}


def tokens(rows: int = 2, length: int = 12) -> Tensor:
    """Random tokens, none of them special."""
    return torch.randint(3, VOCABULARY, (rows, length))


def text() -> dict[str, Tensor]:
    ids = tokens()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def pixels() -> Tensor:
    return torch.randn(2, 3, 32, 32)


#: By family: the class of the model, that of its configuration, what that says, and the arguments of a call.
PRETRAINED: dict[str, tuple[str, str, dict[str, Any], Callable[[], dict[str, Tensor]]]] = {
    "Llama": ("LlamaForCausalLM", "LlamaConfig", _DECODER, text),
    "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _DECODER | {"head_dim": 16}, text),
    "Gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", _DECODER | _WINDOW, text),
    "Phi3": ("Phi3ForCausalLM", "Phi3Config", _DECODER, text),
    "ModernBERT": ("ModernBertModel", "ModernBertConfig", _TEXT | {"cls_token_id": 1, "sep_token_id": 2}, text),
    "Whisper": (
        "WhisperForConditionalGeneration", "WhisperConfig", _SPEECH | _SPECIAL,
        lambda: {"input_features": torch.randn(2, 16, 100), "decoder_input_ids": tokens(length=6)},
    ),
    "T5": (
        "T5ForConditionalGeneration", "T5Config", _TRANSLATION,
        lambda: text() | {"decoder_input_ids": tokens(length=6)},
    ),
    "SigLIP": (
        "SiglipModel", "SiglipConfig", _PAIR, lambda: {"input_ids": tokens(length=16), "pixel_values": pixels()},
    ),
    "ViT": ("ViTForImageClassification", "ViTConfig", _IMAGE, lambda: {"pixel_values": pixels()}),
    "Mamba": ("MambaForCausalLM", "MambaConfig", _STATE, lambda: {"input_ids": tokens()}),
    "Mamba-2": (
        "Mamba2ForCausalLM", "Mamba2Config", _STATE | {"head_dim": 16, "num_heads": 8, "n_groups": 2, "chunk_size": 16},
        lambda: {"input_ids": tokens()},
    ),
}  # fmt: skip

_LATENT = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 2,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
}

#: The same of diffusers, whose models take their configuration as keywords.
DIFFUSION: dict[str, tuple[str, dict[str, Any], Callable[[], dict[str, Tensor]]]] = {
    "DiT": (
        "DiTTransformer2DModel", _LATENT | {"num_embeds_ada_norm": 10},
        lambda: {"hidden_states": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([3, 500]),
                 "class_labels": torch.tensor([1, 2])},
    ),
    "SD3": (
        "SD3Transformer2DModel",
        _LATENT | {"joint_attention_dim": 32, "caption_projection_dim": 64, "pooled_projection_dim": 32,
                   "out_channels": 4, "pos_embed_max_size": 16},
        lambda: {"hidden_states": torch.randn(2, 4, 8, 8), "encoder_hidden_states": torch.randn(2, 5, 32),
                 "pooled_projections": torch.randn(2, 32), "timestep": torch.tensor([3.0, 500.0])},
    ),
}  # fmt: skip


def make(family: str, **changes: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model of a family, with changes of its configuration, and the keywords of a call."""
    torch.manual_seed(0)
    if family in DIFFUSION:
        import diffusers

        name, settings, call = DIFFUSION[family]
        return getattr(diffusers, name)(**settings | changes).eval(), call()
    import transformers

    name, config, settings, call = PRETRAINED[family]
    return getattr(transformers, name)(getattr(transformers, config)(**settings | changes)).eval(), call()
