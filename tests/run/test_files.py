"""Data from texts and images: what a model's own tokenizer and preprocessing make of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from commands import done

import qcompile as qc
from qcompile.errors import InputError, MissingExtraError
from qcompile.run.data import load_data
from qcompile.run.reading import Reading

# -- texts -----------------------------------------------------------------------------------------------------------

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog"]

DECODER = """g (int64[n,m] input_ids, int64[n,k] attention_mask, int64[n,m] position_ids, float[n,2,p,4] past_0)
    => (float[n,m,4] y) <float[16,4] t> { y = Gather(t, input_ids) }"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one that knows eight words, and puts marks around a text."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed (extra text)")
    ids = {word: i for i, word in enumerate(["[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    marks = [("[CLS]", 1), ("[SEP]", 2)]
    made.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(" ".join(WORDS * 3))
    return tmp_path / "text.txt"


def rows(data, name: str) -> np.ndarray:
    return np.concatenate([batch[name] for batch in data.batches])


def test_a_text_becomes_windows(parse, tokenizer: Path, text: Path) -> None:
    model = parse("g (int64[n,m] ids) => (float[n,m,4] y) <float[16,4] t> { y = Gather(t, ids) }")
    data = load_data(text, model, reading=Reading(tokenizer, window=10))
    eight = list(range(3, 11))
    assert rows(data, "ids").tolist() == [[1, *eight, 2]] * 3
    data = load_data(text.parent, model, reading=Reading(tokenizer / "tokenizer.json", window=7))  # a folder of texts
    stream = eight * 3
    assert rows(data, "ids").tolist() == [[1, *stream[i : i + 5], 2] for i in range(0, 20, 5)]  # four are left over


def test_a_text_beside_arrays_is_no_data(parse, tokenizer: Path, text: Path) -> None:
    np.savez(text.parent / "ids.npz", ids=np.ones((2, 5), np.int64))
    model = parse("g (int64[n,m] ids) => (float[n,m,4] y) <float[16,4] t> { y = Gather(t, ids) }")
    assert rows(load_data(text.parent, model), "ids").shape == (2, 5)
    assert rows(load_data(text.parent, model, reading=Reading(tokenizer, window=13)), "ids").shape == (2, 13)


def test_a_decoder_gets_what_it_reads_beside_tokens(parse, tokenizer: Path, text: Path) -> None:
    data = load_data(text, parse(DECODER), reading=Reading(tokenizer, window=10))
    assert rows(data, "attention_mask").tolist() == [[1] * 10] * 3
    assert rows(data, "position_ids").tolist() == [list(range(10))] * 3
    past = rows(data, "past_0")
    assert (past.shape, past.dtype) == ((3, 2, 0, 4), np.float32)


def test_a_window_is_as_long_as_the_model_says(parse, tokenizer: Path, text: Path) -> None:
    model = parse("g (int32[n,6] ids) => (float[n,6,4] y) <float[16,4] t> { y = Gather(t, ids) }")
    ids = rows(load_data(text, model, reading=Reading(tokenizer)), "ids")
    assert (ids.shape, ids.dtype) == ((6, 6), np.int32)
    with pytest.raises(InputError, match="reads windows of 6 tokens, not of 8"):
        load_data(text, model, reading=Reading(tokenizer, window=8))


def test_texts_that_cannot_be_used(parse, tokenizer: Path, text: Path) -> None:
    model = parse("g (int64[n,m] ids) => (float[n,m,4] y) <float[16,4] t> { y = Gather(t, ids) }")
    with pytest.raises(InputError, match="name the folder of its tokenizer with --tokenizer"):
        load_data(text, model)
    with pytest.raises(InputError, match="no tokenizer.json at .*save_pretrained"):
        load_data(text, model, reading=Reading(text.parent))
    with pytest.raises(InputError, match="26 tokens, fewer than one window of 512: see --window"):
        load_data(text, model, reading=Reading(tokenizer))
    other = parse("g (int64[n,m] ids, float[n,3] z) => (float[n,m,4] y) <float[16,4] t> { y = Gather(t, ids) }")
    with pytest.raises(InputError, match="reads 'z', which .* does not give"):
        load_data(text, other, reading=Reading(tokenizer, window=8))
    two = parse("g (int64[n,m] a, int64[n,m] b) => (float[n,m,4] y) <float[16,4] t> { s = Add(a, b) y = Gather(t, s) }")
    with pytest.raises(InputError, match="takes 'a', 'b': write an .npz"):
        load_data(text, two, reading=Reading(tokenizer, window=8))
    (text.parent / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="not a readable tokenizer"):
        load_data(text, model, reading=Reading(text.parent))
    text.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="no text in UTF-8"):
        load_data(text, model, reading=Reading(tokenizer))


def test_without_the_packages(parse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    (tmp_path / "a.txt").write_text("a")
    model = parse("g (int64[n,m] ids) => (float[n,m,4] y) <float[16,4] t> { y = Gather(t, ids) }")
    with pytest.raises(MissingExtraError, match="reading a text needs the extra 'text'"):
        load_data(tmp_path / "a.txt", model, reading=Reading(tmp_path))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_text("")
    (tmp_path / "images" / "preprocessor_config.json").write_text("{}")
    with pytest.raises(MissingExtraError, match="reading images needs the extra 'images'"):
        load_data(tmp_path / "images", parse(IMAGES))


def test_an_export_from_a_text(parse, tokenizer: Path, text: Path, tmp_path: Path) -> None:
    """From the command line, and again by the manifest that it wrote."""
    source = """g (int64[n,m] ids) => (float[n,m,32] y) <float[16,32] t, float[32,32] w>
        { h = Gather(t, ids) y = MatMul(h, w) }"""
    ir.save(parse(source), tmp_path / "m.onnx")
    given = ["--target", "cpu-int4", "--method", "rtn", "--window", 10, "-q", "--evaluation", text]
    done("export", tmp_path / "m.onnx", "-o", tmp_path / "out", *given, "--calibration", text, "--tokenizer", tokenizer)
    made = qc.Artifact.open(tmp_path / "out").manifest
    assert made["options"]["tokenizer"] == str(tokenizer)
    assert made["options"]["window"] == 10
    assert "relative L2" in done("verify", tmp_path / "out", "--evaluation", text).stdout  # read as the export read it
    shorter = done("verify", tmp_path / "out", "--evaluation", text, "--window", 6, "--json", "-").stdout
    assert json.loads(shorter)["rel_l2"] < 0.2
    done(
        "rotate",
        tmp_path / "m.onnx",
        "-o",
        tmp_path / "r.onnx",
        "--calibration",
        text,
        "--tokenizer",
        tokenizer,
        "--window",
        9,
    )
    done("export", tmp_path / "m.onnx", "-o", tmp_path / "again", "-q", "--config", tmp_path / "out")
    assert qc.Artifact.open(tmp_path / "again").manifest == made


# -- images ----------------------------------------------------------------------------------------------------------

IMAGES = "g (float[n,3,4,6] pixel_values) => (float[n,3,4,6] y) { y = Relu(pixel_values) }"

SETTINGS = {
    "do_resize": True, "size": {"height": 4, "width": 6}, "resample": 0, "do_rescale": True, "rescale_factor": 0.5,
    "do_normalize": True, "image_mean": [1.0, 2.0, 3.0], "image_std": [2.0, 2.0, 4.0],
}  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images of 8 x 12, each pixel twice as large as those of ``PIXELS``, and settings."""
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra images)")
    for i, name in enumerate(("a.png", "b.PNG")):
        pixels = np.repeat(np.repeat(PIXELS + i, 2, 0), 2, 1)
        pillow.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    return tmp_path


PIXELS = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)


def expected(pixels: np.ndarray) -> np.ndarray:
    return ((pixels * 0.5 - [1, 2, 3]) / [2, 2, 4]).astype(np.float32)


def changed(images: Path, **settings: object) -> Path:
    (images / "preprocessor_config.json").write_text(json.dumps(SETTINGS | settings))
    return images


def test_a_folder_of_images(parse, images: Path) -> None:
    made = rows(load_data(images, parse(IMAGES)), "pixel_values")
    want = np.stack([expected(PIXELS), expected(PIXELS + 1)]).transpose(0, 3, 1, 2)
    assert np.array_equal(made, want)
    last = parse("g (float[n,h,w,3] x) => (float[n,h,w,3] y) { y = Relu(x) }")
    assert rows(load_data(images, last), "x").shape == (2, 4, 6, 3)


def test_preprocessing_from_elsewhere(parse, images: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("settings")
    (images / "preprocessor_config.json").rename(other / "preprocessor_config.json")
    with pytest.raises(InputError, match="no readable preprocessor_config.json"):
        load_data(images, parse(IMAGES))
    for place in (other, other / "preprocessor_config.json"):
        assert len(load_data(images, parse(IMAGES), reading=Reading(preprocessing=place)).batches)


def test_the_shorter_side_and_the_middle(parse, images: Path) -> None:
    changed(images, size={"shortest_edge": 4}, do_center_crop=True, crop_size={"height": 4, "width": 2})
    model = parse("g (float[n,3,h,w] x) => (float[n,3,h,w] y) { y = Relu(x) }")
    made = rows(load_data(images, model), "x")
    assert np.array_equal(made[0].transpose(1, 2, 0), expected(PIXELS)[:, 2:4])


def test_images_that_cannot_be_used(parse, images: Path) -> None:
    model = parse(IMAGES)
    for settings, reason in (
        ({"do_pad": True}, "asks for do_pad, which is not done here"),
        ({"crop_pct": 0.9}, "asks for crop_pct"),
        ({"size": {"longest_edge": 9}}, "has size"),
        ({"size": {"height": 5, "width": 6}}, r"become \[3, 5, 6\], and 'pixel_values' is \[3, 4, 6\]"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 2}}, "has crop_size"),
    ):
        with pytest.raises(InputError, match=reason):
            load_data(changed(images, **settings), model)
    with pytest.raises(InputError, match="takes 'x', 'z'"):
        load_data(changed(images), parse("g (float[n,3,4,6] x, float[n,3] z) => (float[n,3] y) { y = Relu(z) }"))
    (images / "a.png").write_text("no image")
    with pytest.raises(InputError, match="not a readable image"):
        load_data(images, model)
