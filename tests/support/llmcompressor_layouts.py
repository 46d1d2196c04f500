"""Writes ``llmcompressor_layouts.json``: what llmcompressor stores of a small Llama, for a test that compares layouts.

pip install torch==2.13.0 llmcompressor==0.14.0.1   # in an environment of its own: it pins an older transformers
python tests/support/llmcompressor_layouts.py
"""

import json
import tempfile
from pathlib import Path

LLAMA = {
    "vocab_size": 96, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip

#: Schemes of llmcompressor by what a checkpoint of ours is made for.
SCHEMES = {
    "int4-g128": "W4A16", "uint4-g128": "W4A16_ASYM", "nvfp4": "NVFP4A16", "mxfp4": "MXFP4A16",
    "mxfp4-even/mxfp4-even": "MXFP4", "nvfp4/nvfp4-static": "NVFP4",
}  # fmt: skip

#: Schemes whose second level of inputs follows from data.
CALIBRATED = {"NVFP4"}

OUT = Path(__file__).parent / "llmcompressor_layouts.json"


def main() -> None:
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from safetensors import safe_open
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = Dataset.from_dict({"input_ids": [[*range(32)]] * 4, "attention_mask": [[1] * 32] * 4})
    words = Tokenizer(models.WordLevel({str(word): word for word in range(32)}, unk_token="0"))
    reader = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0")  # data is refused without one
    found = {}
    for ours, scheme in SCHEMES.items():
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            LlamaForCausalLM(LlamaConfig(**LLAMA)).bfloat16().save_pretrained(Path(folder) / "source")
            module = LlamaForCausalLM.from_pretrained(Path(folder) / "source", dtype=torch.bfloat16)
            recipe = QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])
            data = {"dataset": tokens, "num_calibration_samples": len(tokens)} if scheme in CALIBRATED else {}
            oneshot(model=module, recipe=recipe, processor=reader, **data)
            module.save_pretrained(folder, save_compressed=True)
            with safe_open(Path(folder) / "model.safetensors", "pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in sorted(stored.keys())}
            config = json.loads((Path(folder) / "config.json").read_text())
        found[ours] = {
            "config": config["quantization_config"],
            "tensors": {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()},
        }
    OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
