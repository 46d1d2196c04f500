"""Exports that learn: less error on rows that nothing saw, the same function before rounding, equal bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from small import write_model

from qcompile.api import export
from qcompile.errors import InputError

PLAIN = {"formats": ["int4-g32/int4-g32"], "method": "rtn", "transforms": "none"}


def inputs(seed: int, rows: int) -> np.ndarray:
    """Rows near a subspace of 16 directions, so that errors can make up for each other, with a few loud features."""
    rng, mixing = np.random.default_rng(seed), np.random.default_rng(9).standard_normal((16, 64)) / 4
    drawn = rng.standard_normal((rows, 16)) @ mixing + 0.1 * rng.standard_normal((rows, 64))
    return (drawn * np.where(np.arange(64) % 21 == 3, 8.0, 1.0)).astype(np.float32)


def made(folder: Path, name: str, **options: object) -> tuple[dict, float]:
    """The manifest, and the artifact's relative error in onnxruntime on rows of their own."""
    source = folder / "mlp.onnx" if (folder / "mlp.onnx").exists() else write_model(folder)
    artifact = export(source, "reference", folder / name, calibration={"x": inputs(0, 1024)}, **{**PLAIN, **options})
    x = {"x": inputs(1, 128)}
    sessions = [onnxruntime.InferenceSession(str(path)) for path in (source, folder / name / "model.onnx")]
    want, have = (session.run(None, x)[0] for session in sessions)
    error = float(np.linalg.norm(have - want) / np.linalg.norm(want))
    assert artifact.manifest["equivalence"]["rel_l2"] <= 1e-5
    return json.loads((folder / name / "manifest.json").read_text()), error


@pytest.mark.parametrize(
    ("wishes", "words"),
    [({"transforms": "block"}, "transforms{steps=80,rate=10}"), ({"formats": ["int4-g32"]}, "codes{steps=80,rate=5}")],
)
def test_each_part_lowers_the_error(tmp_path: Path, wishes: dict, words: str) -> None:
    plain, error = made(tmp_path, "plain", **wishes)
    assert plain["learned"] == []
    assert plain["options"]["learn"] is None
    manifest, own = made(tmp_path, "learned", **wishes, learn=words)
    (entry,) = manifest["learned"]
    assert entry["kept"]
    assert not entry["redrawn"]  # there are no tokens
    assert 0 < entry["best"] <= entry["steps"] == 80
    assert entry["after"] < entry["before"]
    assert own < 0.97 * error
    assert manifest["options"]["learn"] == words


def test_equal_exports_are_equal_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        made(folder, "artifact", learn="all{steps=6}")
    one, two = (
        {path.name: path.read_bytes() for path in sorted((folder / "artifact").iterdir())} for folder in folders
    )
    assert one.keys() == two.keys()
    for name, content in one.items():
        if name not in ("manifest.json", "report.html"):  # which name the source's folder
            assert content == two[name], name


def test_too_little_data_is_said(tmp_path: Path) -> None:
    source = write_model(tmp_path)
    artifact = export(
        source, "reference", tmp_path / "a", calibration={"x": inputs(0, 3)}, learn="codes{steps=2}", **PLAIN
    )
    assert artifact.manifest["learned"] == []
    assert any(
        entry["what"] == "learning codes, biases and norms" and "less than 4 sequences" in entry["reason"]
        for entry in artifact.manifest["declined"]
    )


def test_what_is_no_better_is_left_out(tmp_path: Path) -> None:
    """A rate at which nothing can be learned: the artifact is the one without."""
    manifest, error = made(tmp_path, "wild", learn="transforms{steps=3,rate=100000}")
    (entry,) = manifest["learned"]
    assert not entry["kept"]
    assert entry["after"] == entry["before"]
    assert any(entry["what"] == "learning transforms" for entry in manifest["declined"])
    assert error == made(tmp_path, "plain")[1]


def test_unknown_words_are_refused_before_work_starts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to learn is called 'everything'"):
        export(write_model(tmp_path), "reference", tmp_path / "a", learn="everything")
    assert not (tmp_path / "a").exists()


def test_biases_and_norms_are_constants_of_the_artifact(tmp_path: Path) -> None:
    """Learned vectors are lowered: the artifact in onnxruntime is what the engine measured."""
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.standard_normal((64, 64)) / 8,
        "b": rng.standard_normal(64),
        "v": rng.standard_normal((64, 8)) / 8,
    }
    text = """<ir_version: 9, opset_import: ["": 21]> g (float[N,64] x) => (float[N,8] y)
    { h = Gemm(x, w, b)\n r = Tanh(h)\n y = MatMul(r, v) }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items())
    onnx.save(proto, tmp_path / "g.onnx")
    artifact = export(
        tmp_path / "g.onnx", "reference", tmp_path / "a", calibration={"x": inputs(0, 256)},
        learn="codes{steps=40,rate=5}", **PLAIN,
    )  # fmt: skip
    manifest = artifact.manifest
    assert manifest["learned"][0]["kept"]
    assert manifest["implementation"]["rel_l2"] < 1e-5  # sites beside their definition, with the new bias
    assert manifest["engine"]["rel_l2"] < 0.3 * manifest["quantization"]["rel_l2"]


CONVOLUTIONS = """<ir_version: 10, opset_import: ["" : 20]>
g (float[batch,4,8,8] x) => (float[batch,8] y)
{
    a = Conv <pads=[1,1,1,1]> (x, first)
    b = Relu (a)
    c = ReduceMean <keepdims=0> (b, places)
    d = MatMul (c, second)
    y = MatMul (d, third)
}"""


def test_kernels_of_convolutions_are_learned_beside_products(tmp_path: Path) -> None:
    model, rng = onnx.parser.parse_model(CONVOLUTIONS), np.random.default_rng(0)
    content = {"first": rng.standard_normal((16, 4, 3, 3)) / 6, "second": rng.standard_normal((16, 16)) / 4,
               "third": rng.standard_normal((16, 8)) / 4}  # fmt: skip
    tensors = {name: array.astype(np.float32) for name, array in content.items()} | {"places": np.array([2, 3])}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in tensors.items())
    onnx.save(model, tmp_path / "cnn.onnx")
    data = {"x": rng.standard_normal((64, 4, 8, 8)).astype(np.float32)}
    artifact = export(tmp_path / "cnn.onnx", "reference", tmp_path / "a", calibration=data, learn="all{steps=12}",
                      formats=["int4-g32/int8-channel"])  # fmt: skip
    assert {entry["part"] for entry in artifact.manifest["learned"]} >= {"codes"}
    codes = next(entry for entry in artifact.manifest["learned"] if entry["part"] == "codes")
    assert codes["parameters"] == 16 * 64 + 16 * 32 + 8 * 32  # each row in whole groups of 32
    assert not any("convolutions" in entry["reason"] for entry in artifact.manifest["declined"])
