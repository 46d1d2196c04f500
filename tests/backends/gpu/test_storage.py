"""The weights file: readable by others, the same bytes for the same content."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from qcompile.backends.gpu.runtime.program import Weights
from qcompile.backends.gpu.storage import write_safetensors

CONTENT = {
    "b.codes": np.arange(7, dtype=np.uint8),
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "none": np.zeros((0, 4), np.float32),
    "flag": np.array([True, False]),
}


def sources(names: list[str]) -> dict:
    return {name: (CONTENT[name].dtype, CONTENT[name].shape, lambda name=name: CONTENT[name]) for name in names}


def test_others_read_it(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "w", sources(list(CONTENT)))
    read = load_file(tmp_path / "w")
    assert read.keys() == CONTENT.keys()
    assert all((read[name] == CONTENT[name]).all() and read[name].shape == CONTENT[name].shape for name in CONTENT)


def test_bytes_do_not_depend_on_the_order(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "one", sources(list(CONTENT)))
    write_safetensors(tmp_path / "two", sources(sorted(CONTENT)))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_program_reads_it(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "weights.safetensors", sources(list(CONTENT)))
    formats = {"int4": {"name": "int4", "element": "int4"}}
    packed = {"b": {"kind": "linear", "weight": {"format": "int4"}}}
    (tmp_path / "layout.json").write_text(json.dumps({"packed": packed, "formats": formats}))
    weights = Weights(tmp_path, torch.device("cpu"), torch.bfloat16)
    assert weights.narrow("a").dtype == torch.bfloat16
    assert weights.wide("a").tolist() == CONTENT["a"].tolist()
    tensors, meta = weights.packed("b")
    assert tensors["codes"].tolist() == CONTENT["b.codes"].tolist()
    assert meta["weight"] == formats["int4"]
    assert weights.raw("none").shape == (0, 4)
