"""The models that ship: they run, and each rotates where the mathematics says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qcompile as qc
from qcompile.api import rotate
from qcompile.run.compare import compare
from qcompile.run.session import Session, evaluate

ZOO = Path(__file__).parent.parent / "examples" / "zoo"


def windows(rows: int, length: int) -> dict[str, np.ndarray]:
    with np.load(ZOO / "language_model_evaluation.npz") as saved:
        return {"input_ids": saved["input_ids"][:rows, :length]}


def test_mamba_has_learned_and_runs_at_any_batch_and_length() -> None:
    session = Session(ZOO / "mamba.onnx")
    (wide,) = session.run(windows(3, 100)).values()
    (narrow,) = session.run(windows(1, 60)).values()
    np.testing.assert_allclose(wide[:1, :60], narrow, atol=1e-4)
    ids = windows(3, 100)["input_ids"]
    scores = wide[:, :-1].astype(np.float64)
    chosen = np.take_along_axis(scores, ids[:, 1:, None], -1)[..., 0]
    assert (np.log(np.exp(scores).sum(-1)) - chosen).mean() < 2.0  # log(256) = 5.5 for one that knows nothing


def test_mamba_rotates_where_the_mathematics_says() -> None:
    rotated = rotate(ZOO / "mamba.onnx")
    analysis = rotated.prepared.analysis
    spaces = {space.node: space for space in analysis.spaces}
    offline = [spaces[node] for node in rotated.placement.offline]
    stream, *ranks = sorted(offline, key=lambda space: -space.size)
    assert (stream.size, len(stream.readers), len(stream.writers)) == (192, 9, 9)  # 8 mixers, embedding and head
    assert [(space.size, space.freedom.label) for space in ranks] == [(12, "general")] * 8  # x_proj -> dt_proj
    sites = {group.value.name: group.sites for group in rotated.siblings}
    online = [site.shape for name in rotated.placement.online for site in sites[name]]
    assert online == [(384, 192)] * 8  # out_proj
    inputs = windows(2, 50)
    error, _ = compare(evaluate(ZOO / "mamba.onnx", inputs), evaluate(rotated.prepared.model, inputs))
    assert error <= 1e-5


@pytest.mark.parametrize("name", ["language_model", "mamba", "dit", "unet"])
def test_each_file_is_small_enough_to_ship(name: str) -> None:
    assert (ZOO / f"{name}.onnx").stat().st_size < 10_000_000


@pytest.mark.parametrize("target", ["reference", "blackwell-fp4", "cpu-int4"])
def test_mamba_exports_to_each_kind_of_target(target: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "windows.npz", **windows(4, 32))
    artifact = qc.export(
        ZOO / "mamba.onnx", target, tmp_path / "artifact", transforms="hadamard", method="rtn",
        calibration=tmp_path / "windows.npz",
    )  # fmt: skip
    assert artifact.manifest["equivalence"]["rel_l2"] <= 1e-5
    assert artifact.manifest["quantization"]["rel_l2"] < 0.5
    assert len(artifact.manifest["online_transforms"]) == 8  # one in front of each out_proj


def classifier_images(rows: int | None = None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    with np.load(ZOO / "classifier_evaluation.npz") as images, np.load(ZOO / "classifier_labels.npz") as known:
        return {"x": images["x"][:rows]}, known["labels"][:rows]


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_classifiers_read_digits_that_they_have_not_seen(name: str) -> None:
    images, labels = classifier_images()
    (scores,) = Session(ZOO / f"{name}.onnx").run(images).values()
    assert (scores.argmax(1) == labels).mean() > 0.98
    assert (ZOO / f"{name}.onnx").stat().st_size < 2_000_000


@pytest.mark.parametrize("target", ["cpu-int4", "cpu-int8"])
@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_classifiers_still_do_once_they_are_quantized(name: str, target: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with np.load(ZOO / "classifier_calibration.npz") as saved:
        for number in range(16):
            np.savez(folder / f"{number:02}.npz", x=saved["x"][8 * number : 8 * number + 8])
    artifact = qc.export(ZOO / f"{name}.onnx", target, tmp_path / "artifact", calibration=folder)
    sites = artifact.manifest["sites"]
    assert all(site["format"] != "float" for site in sites)
    assert {site["op"] for site in sites} == {"Conv", "Gemm"}
    images, labels = classifier_images(100)
    scores = artifact.run(images)["scores"]
    assert (scores.argmax(1) == labels).mean() > 0.97
    bytes_ = artifact.manifest["bytes"]
    assert bytes_["artifact"] < {"cpu-int4": 0.4, "cpu-int8": 0.5}[target] * bytes_["source"]


def points(rows: int) -> dict[str, np.ndarray]:
    """Some of the held-out points between noise and digit, over all times; both diffusion models read them."""
    with np.load(ZOO / "dit_evaluation.npz") as saved:
        return {name: saved[name][:: -(-len(saved[name]) // rows)] for name in saved}


@pytest.mark.parametrize("name", ["dit", "unet"])
def test_diffusion_models_know_the_way_from_noise_to_digits(name: str) -> None:
    given = points(64)
    (velocity,) = Session(ZOO / f"{name}.onnx").run(given).values()
    asked = Session(ZOO / f"{name}.onnx").run(given | {"y": (given["y"] + 5) % 10})["velocity"]
    assert velocity.shape == given["x"].shape
    # Where the time is t, x + (1 - t) v is the digit: values of pixels, which the other class would draw elsewhere.
    digit = given["x"] + (1 - given["t"])[:, None, None, None] * velocity
    late = given["t"] > 0.5
    assert np.abs(digit[late]).max() < 1.6
    assert np.square(velocity - asked)[late].mean() > 0.1


def test_the_unet_is_small_and_its_skips_are_one_space() -> None:
    assert (ZOO / "unet.onnx").stat().st_size < 2_000_000
    analysis = rotate(ZOO / "unet.onnx", transforms="none").prepared.analysis
    assert len(analysis.sites) == 28
    joins = [space for space in analysis.spaces if len(space.readers) >= 5 and len(space.writers) >= 3]
    assert joins  # encoder, middle and decoder meet by Concat, in products of axes


@pytest.mark.parametrize(("target", "most"), [("reference", 0.30), ("qdq-int8", 0.42), ("cpu-int4", 0.42)])
def test_the_whole_unet_is_quantized(target: str, most: float, tmp_path: Path) -> None:
    given = points(64)
    np.savez(tmp_path / "points.npz", **given)
    artifact = qc.export(
        ZOO / "unet.onnx", target, tmp_path / "artifact", calibration=tmp_path / "points.npz", method="rtn"
    )
    assert all(site["format"] != "float" for site in artifact.manifest["sites"])
    assert artifact.manifest["bytes"]["artifact"] < most * artifact.manifest["bytes"]["source"]
    want = Session(ZOO / "unet.onnx").run(given)["velocity"]
    have = artifact.run(given)["velocity"]
    assert np.linalg.norm(have - want) < 0.15 * np.linalg.norm(want)
