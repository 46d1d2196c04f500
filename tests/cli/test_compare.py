"""``qcompile compare``: any two models, with a cache or without, as a table, JSON and a page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import done, refused
from running_sums import VOCABULARY, plain, save, with_cache

import qcompile as qc


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "ids.npz", ids=np.random.default_rng(2).integers(0, VOCABULARY, (5, 24)))
    return tmp_path / "ids.npz"


def compared(folder: Path, *arguments: object) -> dict:
    done("compare", *arguments, "--json", folder / "found.json", "--quiet")
    return json.loads((folder / "found.json").read_text())


def test_a_model_beside_itself(data: Path, tmp_path: Path) -> None:
    path = save(plain(), tmp_path / "a.onnx")
    found = compared(tmp_path, path, path, "--inputs", data, "--generate", 10)
    assert found["divergence"]["max"] == 0
    assert found["flips"]["count"] == 0
    assert found["generation"]["diverged"] == 0
    assert found["generation"]["mean_agreeing"] == 10
    assert {entry["first_divergence"] for entry in found["worst"]} == {None}


@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_one_with_a_cache_beside_one_without(noise: float, data: Path, tmp_path: Path) -> None:
    """The second takes more inputs, of which the past may be left out."""
    ids = np.load(data)["ids"]
    feeds = {"ids": ids, "position": np.tile(np.arange(24), (5, 1)), "mask": np.ones_like(ids),
             "past": np.zeros((5, 0, 6), np.float32)}  # fmt: skip
    np.savez(tmp_path / "all.npz", **feeds)
    cached = save(with_cache(), tmp_path / "cached.onnx")
    other = save(with_cache(noise), tmp_path / "other.onnx")
    found = compared(tmp_path, cached, other, "--inputs", tmp_path / "all.npz", "--generate", 8)
    assert (found["divergence"]["mean"] > 0.01) == (noise > 0)
    assert (found["generation"]["diverged"] > 0) == (noise > 0)
    assert found["generation"]["read"] == 16


def test_the_texts_are_those_of_both(data: Path, tmp_path: Path) -> None:
    a, b = save(plain(), tmp_path / "a.onnx"), save(plain(noise=0.7), tmp_path / "b.onnx")
    found = qc.compare(a, b, data, generate=6)
    ids = np.load(data)["ids"]
    for entry in found["worst"]:
        assert entry["before"] == ids[entry["prompt"], 2:18].tolist()
        at = entry["first_divergence"]
        if at is not None:
            assert entry["wanted"][:at] == entry["made"][:at]
            assert entry["wanted"][at] != entry["made"][at]
    assert any(entry["first_divergence"] is not None for entry in found["worst"])
    swapped = {entry["prompt"]: entry for entry in qc.compare(b, a, data, generate=6)["worst"]}
    assert all(swapped[entry["prompt"]]["made"] == entry["wanted"] for entry in found["worst"])


def test_the_table_and_the_page(data: Path, tmp_path: Path) -> None:
    a, b = save(plain(), tmp_path / "a.onnx"), save(plain(noise=0.7), tmp_path / "b.onnx")
    shown = done("compare", a, b, "--inputs", data, "--html", tmp_path / "page.html").stdout
    found = compared(tmp_path, a, b, "--inputs", data)
    page = (tmp_path / "page.html").read_text()
    for text in (shown, page):
        assert str(found["flips"]["count"]) in text
        assert f"{found['loss']['difference']:+.4f}" in text
    assert f"prompt {found['worst'][0]['prompt']}<" in page


def test_an_artifact_beside_its_model(data: Path, tmp_path: Path) -> None:
    path = save(plain(), tmp_path / "a.onnx")
    artifact = qc.export(path, "reference", folder=tmp_path / "artifact", formats=["int8-g32"], latency=False)
    found = qc.compare(path, artifact.folder, data)
    assert 0 < found["divergence"]["mean"] < 0.05
    assert found["other"] == str(tmp_path / "artifact")


def test_outputs_that_are_no_scores(tmp_path: Path) -> None:
    head = '<ir_version: 10, opset_import: ["" : 21]> agraph (float[B,3] x) => (float[B,4] y) '
    for name, value in (("a", "1.0"), ("b", "1.1")):
        numbers = ", ".join([value] * 12)
        save(head + f"<float[3,4] w = {{{numbers}}}> {{ y = MatMul(x, w) }}", tmp_path / f"{name}.onnx")
    found = qc.compare(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert found["flips"] is None
    assert found["generation"] is None
    assert found["divergence"]["mean"] == pytest.approx(0.5 * 0.1**2, rel=1e-4)


def test_mistakes_are_one_sentence(data: Path, tmp_path: Path) -> None:
    a = save(plain(), tmp_path / "a.onnx")
    assert "no output 'none'" in refused(tmp_path, "compare", a, a, "--inputs", data, "--scores", "none")
    assert "there is no file" in refused(tmp_path, "compare", a, tmp_path / "b.onnx", "--inputs", data)
    np.savez(tmp_path / "short.npz", ids=np.zeros((2, 2), np.int64))
    assert "--generate 0" in refused(tmp_path, "compare", a, a, "--inputs", tmp_path / "short.npz")
