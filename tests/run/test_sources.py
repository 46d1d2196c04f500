"""Data in the forms in which people have it becomes the same batches, or one sentence that says what does not fit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import qcompile as qc
from qcompile.errors import InputError
from qcompile.run.data import load_data
from qcompile.run.sources import batches_of, describe_inputs

ONE = "g (float[n,8] x) => (float[n,4] y) <float[8,4] w> { y = MatMul(x, w) }"
TWO = """g (int64[n,s] ids, float[n,past,8] cache) => (float[n,s,8] y, float[n,t,8] now) <float[32,8] e, float[8,8] w>
    { h = Gather(e, ids)\n y = MatMul(h, w)\n now = Concat<axis=1>(cache, y) }"""

X = np.arange(48, dtype=np.float32).reshape(6, 8)


def joined(data, model) -> np.ndarray:
    return np.concatenate([batch["x"] for batch in batches_of(data, model)])


class Loader:
    """What a DataLoader is to us: an iterable of mappings of tensors."""

    def __iter__(self):
        return iter([{"x": torch.from_numpy(X[:4])}, {"x": torch.from_numpy(X[4:])}])


FORMS = {
    "a mapping of arrays": {"x": X},
    "a mapping of tensors": {"x": torch.from_numpy(X)},
    "a mapping of lists": {"x": X.tolist()},
    "a list of mappings": [{"x": X[:2]}, {"x": X[2:]}],
    "rows without a batch axis": [{"x": row} for row in X],
    "arrays alone": [X[:3], X[3:]],
    "a loader": Loader(),
    "a function": lambda: {"x": X},
    "a function that gives a loader": Loader,
    "rows as objects": {"x": np.array([None, *X], object)[1:]},
}


@pytest.mark.parametrize("data", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_rows(parse, data):
    model = parse(ONE)
    found = joined(data, model)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, X)


def test_files_give_the_same_rows(parse, tmp_path):
    model = parse(ONE)
    np.savez(tmp_path / "a.npz", x=X)
    np.save(tmp_path / "b.npy", X)
    save_file({"x": X}, tmp_path / "c.safetensors")
    for name in ("a.npz", "b.npy", "c.safetensors"):
        np.testing.assert_array_equal(joined(tmp_path / name, model), X)
    np.testing.assert_array_equal(joined(tmp_path, model), np.concatenate([X, X, X]))


def test_rows_of_several_lengths_are_batches_of_one(parse):
    rows = [np.arange(n) for n in (3, 5, 2)]
    cache = np.zeros((3, 0, 8), np.float32)
    found = list(batches_of({"ids": rows, "cache": cache}, parse(TWO)))
    assert [batch["ids"].shape for batch in found] == [(1, 3), (1, 5), (1, 2)]
    assert all(batch["cache"].shape == (1, 0, 8) for batch in found)


def test_an_empty_past_is_data(parse, tmp_path):
    data = {"ids": np.ones((2, 4), np.int32), "cache": np.zeros((2, 0, 8), np.float32)}
    artifact = qc.export(parse(TWO), "cpu-int4", tmp_path / "out", calibration=data, method="rtn")
    assert artifact.manifest["options"]["calibration"] == "given in Python"
    assert artifact.run({"ids": np.ones((1, 4), np.int64), "cache": data["cache"][:1]})["now"].shape == (1, 4, 8)


MISTAKES = {
    "the data lacks x and has unknown z; the model's inputs are x": {"z": X},
    "holds NaN": {"x": X * np.nan},
    "x' is complex64, but the model reads float32": {"x": X.astype(np.complex64)},
    "cannot take data from a int": 7,
    "item 0 of the data is a str": ["x"],
    r"the data holds nothing; the model takes x float32 \[n, 8\]": [],
    "there is no data at": "/nowhere/x.npz",
}


@pytest.mark.parametrize(("message", "data"), MISTAKES.items(), ids=MISTAKES)
def test_mistakes_are_named(parse, message, data):
    with pytest.raises(InputError, match=message):
        load_data(data, parse(ONE))


def test_numbers_that_the_graph_cannot_hold_are_refused(parse):
    model = parse("g (int32[n] i) => (float[n,4] y) <float[8,4] e> { y = Gather(e, i) }")
    with pytest.raises(InputError, match="too large for int32"):
        load_data({"i": np.array([1 << 40])}, model)


def test_rows_of_several_lengths_are_counted(parse):
    rows, cache = [np.arange(n) for n in (3, 5, 2)], np.zeros((2, 0, 8), np.float32)
    with pytest.raises(InputError, match="need as many of every input: ids has 3, cache has 2"):
        load_data({"ids": rows, "cache": cache}, parse(TWO))


def test_data_without_an_end_is_refused(parse):
    with pytest.raises(InputError, match="more than 4096 items, or no end"):
        load_data(itertools.repeat({"x": X[:1]}), parse(ONE))


def test_one_array_needs_one_input(parse, tmp_path):
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(InputError, match=r"the model takes ids int64 \[n, s\], cache float32 \[n, past, 8\]"):
        load_data(tmp_path / "a.npy", parse(TWO))


def test_inputs_are_described(parse):
    assert describe_inputs(parse(TWO)) == "ids int64 [n, s], cache float32 [n, past, 8]"
