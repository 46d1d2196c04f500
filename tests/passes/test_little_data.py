"""With little data nothing is fitted that others of its kind do not bear, and the artifact is no worse than without."""

from __future__ import annotations

import changes
import numpy as np
import onnx_ir as ir
import pytest

import qcompile as qc
from qcompile.run.data import Data, hold_out
from qcompile.run.session import evaluate

GRAPH = """g (int64[n,l] i) => (float[n,l,40] y) <float[128,64] e, float[64,96] a, float[96,64] b, float[64,40] h> {
    x = Gather(e, i)
    u = MatMul(x, a)
    r = Relu(u)
    v = MatMul(r, b)
    s = Add(x, v)
    y = MatMul(s, h) }"""
CHAIN = np.random.default_rng(7).integers(0, 128, (128, 4))


def texts(count: int, length: int, seed: int) -> np.ndarray:
    """Every symbol has few followers, so that rows of a text are alike."""
    rng = np.random.default_rng(seed)
    found = [rng.integers(0, 128, count)]
    for _ in range(length - 1):
        found.append(CHAIN[found[-1], rng.integers(0, 4, count)])
    return np.stack(found, 1)


@pytest.fixture(scope="module")
def model():
    rng, made = np.random.default_rng(3), changes.parse(GRAPH)
    for value in made.graph.initializers.values():
        shape = [int(n) for n in value.shape]
        loud = 1 + 5 * (rng.random(shape[1]) < 0.1)
        array = (rng.standard_normal(shape) * loud * (1 if value.name == "e" else shape[0] ** -0.5)).astype(np.float32)
        value.const_value = ir.tensor(array, name=value.name)
    return made


@pytest.fixture(scope="module")
def fresh(model):
    inputs = {"i": texts(64, 12, 99)}
    return inputs, evaluate(model, inputs)["y"]


def exported(model, fresh, folder, **options):
    """The artifact's manifest and its error on fresh texts."""
    artifact = qc.export(model, "reference", folder, formats=["int4-g32/int4-g32"], **options)
    inputs, want = fresh
    return artifact.manifest, float(np.linalg.norm(artifact.run(inputs)["y"] - want) / np.linalg.norm(want))


@pytest.fixture(scope="module")
def plain(model, fresh, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "out"
    return exported(model, fresh, folder, transforms="none", method="rtn")[1]


def said(manifest) -> dict[str, str]:
    """What was declined of all sites at once."""
    return {entry["what"]: entry["reason"] for entry in manifest["declined"] if entry["site"] == "*"}


@pytest.mark.parametrize(("count", "length"), [(1, 1), (2, 7), (1, 200), (6, 12)])
def test_never_worse_than_rounding_to_nearest(model, fresh, plain, tmp_path, count, length):
    manifest, error = exported(model, fresh, tmp_path / "out", calibration={"i": texts(count, length, 5)})
    assert error < 1.03 * plain
    few = "the data has less than 4 sequences, too few to judge on others what is learned from some"
    if count < 4:
        assert any(reason.startswith(few) for reason in said(manifest).values())
        assert manifest["quantization"]["evaluated_on"] == "calibration"
        assert not any("wush" in transform["kind"] for transform in manifest["online_transforms"])
    else:
        assert manifest["quantization"]["evaluated_on"] == "held out"
        assert manifest["quantization"]["evaluated_inputs"] == 2


def test_more_data_is_learned_from(model, fresh, plain, tmp_path):
    manifest, error = exported(model, fresh, tmp_path / "out", calibration={"i": texts(48, 12, 5)})
    assert error < 0.75 * plain
    assert "transforms, and rounding by what the data teaches" not in said(manifest)


def test_what_fits_other_data_than_is_held_out_is_dropped(model, fresh, plain, tmp_path):
    """One symbol again and again is learned, and texts are held out: what fits the former is worse on the latter."""
    numbers = Data(({"i": np.arange(16)[:, None]},), random=False)
    kept = [int(row["i"][0, 0]) for row in hold_out(numbers, model).held_out]
    ids = np.full((16, 40), 3)
    ids[kept] = texts(len(kept), 40, 5)
    manifest, error = exported(model, fresh, tmp_path / "out", calibration={"i": ids})
    assert error < 1.03 * plain
    reasons = [entry["reason"] for entry in manifest["declined"] if entry["what"] == "GPTQ"]
    assert len(reasons) == 3  # of three sites


def test_weights_of_a_search_must_hold_too(model, fresh, tmp_path):
    options = {"transforms": "none", "method": "search"}
    few, _ = exported(model, fresh, tmp_path / "few", calibration={"i": texts(2, 7, 5)}, **options)
    assert "less than 4 sequences" in said(few)["weighted search"]
    many, _ = exported(model, fresh, tmp_path / "many", calibration={"i": texts(48, 12, 5)}, **options)
    found = [site["held_out"] for site in many["sites"] if "held_out" in site]
    assert found
    assert all({"weighted search", "search"} == set(errors) for errors in found)
