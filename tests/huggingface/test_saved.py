"""Folders as transformers saves models: what is exported, what goes along, and what is missing from others."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import done, refused
from pretrained import make

import qcompile as qc
from qcompile.artifact.folder import atomic_folder
from qcompile.ir.capture import capture
from qcompile.run.session import Session

WANTED = {"architectures": ["LlamaForCausalLM"]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder, with what a tokenizer leaves beside it."""
    pytest.importorskip("transformers", reason="the extra hf is not installed: pip install -e '.[hf]'")
    folder = tmp_path_factory.mktemp("saved") / "decoder"
    make("Llama", num_hidden_layers=1)[0].save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "merges.txt").write_text("a b")
    (folder / "training.log").write_text("not for anybody")
    return folder


def test_a_decoder_comes_with_its_cache_and_all_that_goes_along(saved: Path, tmp_path: Path) -> None:
    done("export", saved, "--target", "cpu-int4", "--method", "rtn", "-o", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json", "generation_config.json", "tokenizer_config.json", "merges.txt", "manifest.json", "model.onnx",
        "report.html",
    }  # fmt: skip
    assert (tmp_path / "out" / "config.json").read_text() == (saved / "config.json").read_text()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["source"]["path"] == str(saved)
    assert manifest["along"] == ["config.json", "generation_config.json", "merges.txt", "tokenizer_config.json"]
    graph = capture(tmp_path / "out" / "model.onnx").model.graph
    assert "past_key_values.0.value" in [value.name for value in graph.inputs]
    assert [value.name for value in graph.outputs][:3] == ["logits", "present.0.key", "present.0.value"]
    with atomic_folder(tmp_path / "out", overwrite=True) as folder:  # what went along is its own
        (folder / "new").write_text("")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]


@pytest.mark.slow
def test_without_the_cache_if_that_is_asked_for(saved: Path, tmp_path: Path) -> None:
    done("export", saved, "--target", "cpu-int4", "--method", "rtn", "--no-cache", "-o", tmp_path / "out")
    names = [value.name for value in capture(tmp_path / "out" / "model.onnx").model.graph.inputs]
    assert names == ["input_ids", "attention_mask"]
    done("verify", tmp_path / "out")  # which captures the source the same way


def test_the_rotated_decoder_continues_a_text_as_the_module_does(saved: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    rotated = qc.rotate(saved)
    session, values = Session(rotated.model), {value.name: value for value in rotated.model.graph.inputs}
    text = np.array([[5, 17, 42, 9], [7, 3, 99, 12]])
    cache = {
        name: np.zeros((2, int(value.shape[1]), 0, int(value.shape[3])), np.float32)
        for name, value in values.items() if name.startswith("past_key_values.")
    }  # fmt: skip
    new = text
    for _ in range(12):
        positions = np.broadcast_to(np.arange(text.shape[1] - new.shape[1], text.shape[1]), new.shape)
        inputs = {"input_ids": new, "attention_mask": np.ones_like(text), "position_ids": positions.copy()}
        found = session.run(inputs | cache)
        cache = {name: found[name.replace("past_key_values", "present")] for name in cache}
        new = found["logits"][:, -1:].argmax(-1)
        text = np.concatenate([text, new], 1)
    ids = torch.from_numpy(text[:, :4])
    module = AutoModelForCausalLM.from_pretrained(saved)
    wanted = module.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=None
    )
    assert text.tolist() == wanted.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["T5", "Whisper", "SigLIP", "ViT", "ModernBERT", "Mamba", "Gemma3"])
def test_folders_of_other_kinds(family: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra hf is not installed: pip install -e '.[hf]'")
    make(family)[0].save_pretrained(tmp_path / "saved")
    artifact = qc.export(tmp_path / "saved", "cpu-int4", tmp_path / "out", method="rtn")
    for one in artifact.parts.values() or [artifact]:
        assert one.manifest["equivalence"]["rel_l2"] < 1e-5


@pytest.mark.parametrize("config, weights, sentence", [
    (None, False, "is a folder without config.json, so it holds no model of Hugging Face"),
    ("{", True, "is not readable as JSON"),
    ("{}", True, "names no architectures"),
    (json.dumps(WANTED), False, "has a config.json, but no weights: model.safetensors"),
])  # fmt: skip
def test_what_is_missing_from_a_folder_is_named(
    config: str | None, weights: bool, sentence: str, tmp_path: Path
) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(config)
    if weights:
        (folder / "model.safetensors").write_bytes(b"")
    assert sentence in refused(tmp_path, "export", folder, "--target", "cpu-int4", "-o", tmp_path / "out")


def test_a_class_that_transformers_lacks_is_named(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["NovelForCausalLM"], "auto_map": {}}))
    (folder / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    sentence = refused(tmp_path, "export", folder, "--target", "cpu-int4", "-o", tmp_path / "out")
    assert "holds a NovelForCausalLM, which transformers" in sentence
    assert "its code is a part of the folder" in sentence


def test_weights_that_are_broken_are_said(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    (folder / "config.json").write_text((saved / "config.json").read_text())
    (folder / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:1000])
    sentence = refused(tmp_path, "export", folder, "--target", "cpu-int4", "-o", tmp_path / "out")
    assert "transformers cannot load" in sentence


def test_without_the_extra_its_installation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(WANTED))
    (folder / "model.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "transformers", None)
    sentence = refused(tmp_path, "export", folder, "--target", "cpu-int4", "-o", tmp_path / "out")
    assert "needs the extra 'hf': pip install" in sentence
