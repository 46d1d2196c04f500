"""The folder of an encoder-decoder: three graphs that write a text together, each an artifact, in optimum's names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from commands import call, done, refused
from pretrained import make

import qcompile as qc
from qcompile.artifact.folder import atomic_folder
from qcompile.backends.ort import lowering
from qcompile.run.session import Session

pytest.importorskip("transformers", reason="the extra hf is not installed: pip install -e '.[hf]'")

PARTS = ["encoder", "decoder", "decoder_with_past"]

#: Changes with which random weights write many tokens, not one again and again.
LIVELY: dict[str, dict[str, Any]] = {
    "T5": {"initializer_factor": 4.0}, "Whisper": {"init_std": 0.5, "tie_word_embeddings": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder-decoder, and data for it."""
    folder = tmp_path_factory.mktemp("saved") / "pair"
    make("T5", num_layers=1, num_decoder_layers=1)[0].save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    draw = np.random.default_rng(0)
    read, written = draw.integers(3, 256, (8, 9)), draw.integers(3, 256, (8, 6))
    mask = np.ones_like(read)
    np.savez(folder.parent / "data.npz", input_ids=read, attention_mask=mask, decoder_input_ids=written)
    return folder


@pytest.fixture(scope="module")
def exported(saved: Path) -> Path:
    """Its artifact, the weights beside the graphs."""
    out, data = saved.parent / "out", saved.parent / "data.npz"
    arguments = ["--target", "cpu-int4", "--method", "rtn", "--transforms", "none", "-q", "--calibration", data]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering, "INLINE_BYTES", 0)
        done("export", saved, *arguments, "-o", out)
    return out


def feed(inputs: list[Any]) -> dict[str, np.ndarray]:
    """Inputs of the graphs' shapes, with lengths of two: masks of ones, tokens, and states like no others."""
    draw = np.random.default_rng(1)
    made = {}
    for value in inputs:
        shape = [size if isinstance(size, int) else 2 for size in value.shape]
        whole = np.ones(shape, np.int64) if "mask" in value.name else draw.integers(3, 256, shape)
        made[value.name] = whole if "int64" in value.type else draw.standard_normal(shape, np.float32)
    return made


def test_the_folder_has_what_optimum_looks_for(saved: Path, exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {
        *PARTS, *(f"{part}_model.onnx" for part in PARTS), "config.json", "generation_config.json",
        "tokenizer_config.json", "manifest.json",
    }  # fmt: skip
    names = {}
    for part in PARTS:
        session = ort.InferenceSession(exported / f"{part}_model.onnx")
        names[part] = [value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()]
        inputs = feed(session.get_inputs())
        want = qc.Artifact.open(exported / part).run(inputs)
        for name, value in zip(names[part][1], session.run(None, inputs), strict=True):
            np.testing.assert_array_equal(value, want[name])
    read = ["encoder_hidden_states", "encoder_attention_mask"]
    halves = {half: [f"0.{half}.key", f"0.{half}.value"] for half in ("decoder", "encoder")}
    both = [*halves["decoder"], *halves["encoder"]]
    assert names == {
        "encoder": (["input_ids", "attention_mask"], ["last_hidden_state"]),
        "decoder": (["input_ids", *read], ["logits", *(f"present.{name}" for name in both)]),
        "decoder_with_past": (
            ["input_ids", *read, *(f"past_key_values.{name}" for name in both)],
            ["logits", *(f"present.{name}" for name in halves["decoder"])],
        ),
    }


def test_each_part_is_an_artifact_that_learned_from_data_for_the_whole(saved: Path, exported: Path) -> None:
    for part in PARTS:
        manifest = qc.Artifact.open(exported / part).manifest
        assert manifest["source"]["part"] == part
        assert manifest["quantization"]["evaluated_on"] == "held out"
        assert all(weight["name"].startswith(part.partition("_")[0]) for weight in manifest["weights"] if
                   "layer" in weight["name"])  # fmt: skip
    top = json.loads((exported / "manifest.json").read_text())
    assert top["parts"] == {part: {"onnx": f"{part}_model.onnx"} for part in PARTS}
    assert top["options"]["calibration"] == str(saved.parent / "data.npz")


@pytest.mark.parametrize("command", [["verify"], ["inspect"], ["run", "--inputs", "x.npz", "-o", "y.npz"]])
def test_where_one_graph_is_needed_the_parts_are_named(command: list[str], exported: Path) -> None:
    name, *rest = command
    message = refused(exported.parent, name, exported, *rest)
    assert message.startswith(f"'{exported}' holds 3 graphs, each an artifact: name one of '{exported / 'encoder'}'")


def test_it_is_replaced_when_asked_but_nothing_of_the_user(exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    (out / "notes.md").write_text("mine")
    with pytest.raises(qc.InputError, match=r"it holds 'notes\.md'"), atomic_folder(out, overwrite=True):
        pass
    (out / "notes.md").unlink()
    with atomic_folder(out, overwrite=True) as folder:
        (folder / "new").write_text("")
    assert [path.name for path in out.iterdir()] == ["new"]


@pytest.mark.parametrize("arguments, sentence", [
    (["--exclude", "lm_head"], "becomes 3 graphs, and --exclude speaks of one: export one with --part"),
    (["--budget", "bytes=1e6"], "becomes 3 graphs, and --budget bytes speaks of one"),
    (["--part", "head"], "unknown part 'head'; there are encoder, decoder, decoder_with_past"),
    (["--part", "decoder", "--no-cache"], "leave out --no-cache, or the part"),
    (["--calibration", "short.npz"], "an example of at least 4 decoder_input_ids, not 3"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(
    arguments: list[str], sentence: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ids = np.full((2, 5), 7)
    np.savez("short.npz", input_ids=ids, attention_mask=np.ones_like(ids), decoder_input_ids=ids[:, :3])
    assert sentence in refused(tmp_path, "export", saved, "--target", "cpu-int4", *arguments, "-o", tmp_path / "out")


def test_a_file_has_no_parts(exported: Path, tmp_path: Path) -> None:
    file = exported / "encoder" / "model.onnx"
    message = refused(tmp_path, "export", file, "--target", "cpu-int4", "--part", "encoder", "-o", tmp_path / "out")
    assert message == "part 'encoder' is one of a folder of Hugging Face, and the model is none"


@pytest.mark.slow
def test_a_part_is_verified_against_the_folder(exported: Path) -> None:
    assert "artifact vs. source" in done("verify", exported / "decoder_with_past").stdout


@pytest.mark.slow
def test_the_whole_is_one_graph_without_its_cache(saved: Path, tmp_path: Path) -> None:
    result = call(
        "export", saved, "--target", "cpu-int4", "--method", "rtn", "--no-cache", "-q", "-o", tmp_path / "out"
    )
    assert result.exit_code == 0
    graph = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph
    assert [value.name for value in graph.input] == ["input_ids", "attention_mask", "decoder_input_ids"]


# -- writing -----------------------------------------------------------------------------------------------------------

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def written(parts: Mapping[str, Run], given: Mapping[str, np.ndarray], start: int, count: int) -> np.ndarray:
    """Tokens, the likeliest each time, from the three parts."""
    read = {"encoder_hidden_states": parts["encoder"](given)["last_hidden_state"]}
    if "attention_mask" in given:
        read["encoder_attention_mask"] = given["attention_mask"]
    text = np.full((len(read["encoder_hidden_states"]), 1), start)
    found = dict(parts["decoder"]({"input_ids": text, **read}))
    while True:
        text = np.concatenate([text, found["logits"][:, -1:].argmax(-1)], 1)
        if text.shape[1] == count + 1:
            return text
        cache = {name.replace("present", "past_key_values"): value for name, value in found.items() if "pres" in name}
        found |= parts["decoder_with_past"]({"input_ids": text[:, -1:], **read, **cache})


@pytest.mark.slow
@pytest.mark.parametrize("family", ["T5", "Whisper"])
def test_rotated_parts_write_what_the_module_writes(family: str, tmp_path: Path) -> None:
    module: Any
    module, example = make(family, **LIVELY[family])
    module.save_pretrained(tmp_path / "saved")
    rotated = {part: qc.rotate(tmp_path / "saved", part=part) for part in PARTS}
    assert all(len(found.placement.offline) for found in rotated.values())
    given = {name: value for name, value in example.items() if name != "decoder_input_ids"}
    if "attention_mask" in given:
        given["attention_mask"][1, 8:] = 0
    start, count = module.config.decoder_start_token_id, 12
    wanted = module.generate(
        **given, max_new_tokens=count, do_sample=False, eos_token_id=None, forced_decoder_ids=None,
        begin_suppress_tokens=None, suppress_tokens=None, decoder_input_ids=torch.full((2, 1), start),
    )  # fmt: skip
    assert len(set(wanted.flatten().tolist())) > 8  # else it would not show whether the cache is read
    sessions = {part: Session(found.model).run for part, found in rotated.items()}
    found = written(sessions, {name: value.numpy() for name, value in given.items()}, start, count)
    assert found[:, -count:].tolist() == wanted[:, -count:].tolist()
