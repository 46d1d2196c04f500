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
from shipped import ZOO, shipped
from smollm2_folder import smollm2_folder

import qcompile as qc
from qcompile.ir.cache_pairs import cache_pairs
from qcompile.run.generation import Decoder, greedy

ROOT = Path(__file__).parents[3]

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
    genai()
    assert len(same_tokens(export(tmp_path, word), prompts(1, 7, seed=3)["input_ids"], 20)) > 4


def genai() -> Any:
    return pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed (extra genai)")


def same_tokens(artifact: Any, ids: np.ndarray, count: int) -> np.ndarray:
    """What onnxruntime-genai writes behind a prompt ``[1, length]``, which our own loop must write too."""
    model, length = genai().Model(str(artifact.folder)), ids.shape[1]
    parameters = genai().GeneratorParams(model)
    parameters.set_search_options(max_length=length + count)
    generator = genai().Generator(model, parameters)
    generator.append_tokens(ids.astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    written = generator.get_sequence(0)[length:]
    graph = ir.load(artifact.folder / "model.onnx")
    ours = greedy(artifact.load(), Decoder.of(graph, "input_ids", "logits"), at_start(ids, graph), len(written))
    np.testing.assert_array_equal(written, ours[0])
    return written


def at_start(ids: np.ndarray, graph: ir.Model) -> dict[str, np.ndarray]:
    """Prompts ``[rows, length]`` with all else that a graph takes, caches without a past."""
    given = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.tile(np.arange(ids.shape[1]), (len(ids), 1)),
    }
    feeds = {value.name: given[value.name] for value in graph.graph.inputs if value.name in given}
    pasts = [pair.past for pair in cache_pairs(graph)]
    return feeds | {v.name: np.zeros((len(ids), v.shape[1], 0, v.shape[3]), v.dtype.numpy()) for v in pasts}


@pytest.mark.parametrize("word", ["float", "int8", "int4"])
def test_the_shipped_language_model(word: str, tmp_path: Path) -> None:
    genai()
    exported = shipped("language_model_cached", tmp_path)
    ids = np.load(ZOO / "language_model_calibration.npz")["input_ids"]
    calibration = at_start(ids[:4, :128], ir.load(exported))
    artifact = qc.export(
        exported, "cpu-int4", tmp_path / "artifact", calibration=calibration, cache_format=word,
        formats=["int4"], transforms="none", method="rtn", form="genai",
    )  # fmt: skip
    if word != "float":
        assert {entry["form"] for entry in artifact.manifest["caches"]} == {"fused"}
    assert len(same_tokens(artifact, ids[-1:, :64], 40)) == 40


@pytest.mark.slow
@pytest.mark.parametrize("word", ["float", "int8", "int4"])
def test_smollm2(word: str, tmp_path: Path) -> None:
    """A folder of Hugging Face: its tokenizer and its configuration go along."""
    genai()
    folder, text = smollm2_folder(tmp_path / "smollm2"), tmp_path / "text.txt"
    text.write_text((ROOT / "README.md").read_text())
    artifact = qc.export(
        folder, "cpu-int4", tmp_path / "artifact", calibration=text, tokenizer=folder, window=128,
        cache_format=word, formats=["int4"], transforms="none", method="rtn", form="genai",
    )  # fmt: skip
    prompt = (
        genai().Tokenizer(genai().Model(str(artifact.folder))).encode("The most important thing about a compiler is")
    )
    assert len(same_tokens(artifact, np.array(prompt)[None].astype(np.int64), 32)) > 4


def test_what_genai_cannot_run_is_refused(tmp_path: Path) -> None:
    path = cached_decoder(tmp_path / "model.onnx", numbered=True)
    other = cached_decoder(tmp_path / "other.onnx")

    def said(model: Path, *more: object, target: str = "cpu-int4") -> str:
        return refused(tmp_path, "export", model, "-o", tmp_path / "out", "--target", target, "--form", "genai", *more)

    assert "static scales" in said(path, "--cache-format", "int8-token")
    assert "past_key, past_value" in said(other)
    data = tmp_path / "data.npz"
    np.savez(data, **numbered(prompts(8, 12)))
    for word in ("fp8-tensor", "int2-channel"):
        assert f"'{word}' is none" in said(path, "--cache-format", word, "--calibration", data)
    assert "no form 'genai'" in said(path, target="reference")
