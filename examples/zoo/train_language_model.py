"""Train the shipped language model: `python train_language_model.py` (one GPU, a few minutes)."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from language_model import LanguageModel
from training import add_arguments, train


def main() -> None:
    """Train on Python's standard library and save language_model.safetensors."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    add_arguments(parser, steps=3000, rows=128, length=512)
    parser.add_argument("--output", type=Path, default=Path("language_model.safetensors"))
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    train(LanguageModel(dropout=options.dropout), options, options.output)


if __name__ == "__main__":
    main()
