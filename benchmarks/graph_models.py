"""Models that benchmarks make: with random weights, and of folders of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["albert", "graph_network", "transformers_model"]

TOKENS = ("input_ids", "attention_mask")


class Hidden(nn.Module):
    """A model of transformers whose only result is the last hidden state, or the logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        given: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.model(**given, return_dict=True)[0]


def transformers_model(folder: Path, path: Path) -> Path:
    """The model of a folder, without its head."""
    from transformers import AutoModel

    return _export(Hidden(AutoModel.from_pretrained(folder)), path)


def albert(path: Path) -> Path:
    """An encoder whose layers are one."""
    from transformers import AlbertConfig, AlbertModel

    torch.manual_seed(0)
    config = AlbertConfig(
        vocab_size=4000, embedding_size=64, hidden_size=256, num_hidden_layers=6, num_attention_heads=4,
        intermediate_size=1024,
    )  # fmt: skip
    return _export(Hidden(AlbertModel(config)), path)


def _export(model: nn.Module, path: Path) -> Path:
    ids = torch.randint(0, 256, (2, 16))
    any_size = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    program = torch.onnx.export(
        model.eval(), kwargs={"input_ids": ids, "attention_mask": torch.ones_like(ids)}, dynamo=True, verbose=False,
        opset_version=20, dynamic_shapes=dict.fromkeys(TOKENS, any_size),
    )  # fmt: skip
    program.save(path, external_data=False)
    return path


def graph_network(path: Path) -> Path:
    """Four rounds of messages on graphs of 64 nodes, whose layers are Gemm, with a dense adjacency as an input."""

    class Network(nn.Module):
        def __init__(self, width: int = 256, rounds: int = 4) -> None:
            super().__init__()
            self.inner = nn.Linear(32, width)
            self.own = nn.ModuleList(nn.Linear(width, width) for _ in range(rounds))
            self.others = nn.ModuleList(nn.Linear(width, width) for _ in range(rounds))
            self.head = nn.Linear(width, 16)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.inner(features))
            for own, others in zip(self.own, self.others, strict=True):
                near = torch.softmax(x @ x.T / 16, -1)
                x = torch.relu(own(x) + others(near @ x)) + x
            return self.head(x)

    torch.manual_seed(0)
    program = torch.onnx.export(
        Network().eval(), (torch.randn(64, 32),), input_names=["features"], dynamo=True, verbose=False,
        dynamic_shapes={"features": {0: torch.export.Dim.DYNAMIC}},
    )  # fmt: skip
    program.save(path, external_data=False)
    return path
