"""A folder that onnxruntime-genai runs: its settings, and the tokens that it writes beside our own greedy loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from cached_decoder import FEATURES, HEADS, VOCABULARY, cached_decoder, prompts
from commands import refused

import qcompile as qc
from qcompile.run.generation import Decoder, greedy

NAMES = ("past_key_values.0.key", "past_key_values.0.value")


def numbered(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.replace("past_", "past_key_values.0."): array for name, array in feeds.items()}


def export(folder: Path, word: str) -> Any:
    path = cached_decoder(folder / "model.onnx", numbered=True)
    return qc.export(
        path, "cpu-int4", folder=folder / "artifact", calibration=numbered(prompts(16, 24)), cache_format=word,
        formats=["int8"], method="rtn", form="genai",
    )  # fmt: skip


@pytest.mark.parametrize("word, stored", [("float", "float32"), ("int8", "int8"), ("int4", "uint8")])
def test_the_settings_follow_from_the_graph(word: str, stored: str, tmp_path: Path) -> None:
    artifact = export(tmp_path, word)
    found = json.loads((artifact.folder / "genai_config.json").read_text())
    decoder = found["model"]["decoder"]
    assert (found["model"]["type"], found["model"]["vocab_size"]) == ("decoder", VOCABULARY)
    assert (decoder["head_size"], decoder["num_key_value_heads"], decoder["num_hidden_layers"]) == (FEATURES, HEADS, 1)
    assert decoder["inputs"] == {
        "input_ids": "input_ids", "position_ids": "position_ids", "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }  # fmt: skip
    assert decoder["outputs"]["present_value_names"] == "present.%d.value"
    assert "genai_config.json" in artifact.manifest["files"]
    types = {entry["name"]: entry["dtype"] for entry in artifact.manifest["inputs"]}
    assert {types[name] for name in NAMES} == {stored}


@pytest.mark.parametrize("word", ["float", "int8", "int4"])
def test_the_same_tokens_as_our_own_loop(word: str, tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed (extra genai)")
    artifact = export(tmp_path, word)
    ids = prompts(1, 7, seed=3)["input_ids"]
    model = genai.Model(str(artifact.folder))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=27)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(ids.astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    written = generator.get_sequence(0)[7:]
    graph = ir.load(artifact.folder / "model.onnx")
    empty = {name: np.zeros(shape, dtype) for name, shape, dtype in _caches(graph)}
    feeds = {"input_ids": ids, "position_ids": np.arange(7)[None]} | empty
    ours = greedy(artifact.load(), Decoder.of(graph, "input_ids", "logits"), feeds, len(written))
    assert len(written) > 4
    np.testing.assert_array_equal(written, ours[0])


def _caches(graph: ir.Model) -> list[tuple[str, list[int], np.dtype]]:
    """Caches with a length of nothing."""
    found = [value for value in graph.graph.inputs if value.name in NAMES]
    return [(v.name, [1, v.shape[1], 0, v.shape[3]], v.dtype.numpy()) for v in found]


def test_what_genai_cannot_run_is_refused(tmp_path: Path) -> None:
    path = cached_decoder(tmp_path / "model.onnx", numbered=True)
    other = cached_decoder(tmp_path / "other.onnx")

    def said(model: Path, *more: object, target: str = "cpu-int4") -> str:
        return refused(tmp_path, "export", model, "-o", tmp_path / "out", "--target", target, "--form", "genai", *more)

    assert "static scales" in said(path, "--cache-format", "int8-token")
    assert "past_key, past_value" in said(other)
    assert "no form 'genai'" in said(path, target="reference")
