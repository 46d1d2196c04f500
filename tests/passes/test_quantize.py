"""GPTQ is held against rounding to nearest on rows that it has not seen."""

from __future__ import annotations

import numpy as np
import pytest

import qcompile as qc
from qcompile.run.data import Data
from qcompile.statistics.calibration import HELD_OUT, collect

GRAPH = "g (float[n,64] x) => (float[n,48] y) <float[64,48] w> { a = Abs(x)\n y = MatMul(a, w) }"


def rows(alike: bool) -> np.ndarray:
    """Correlated rows; those that are held out are loud where the others are silent, unless all are alike."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1024, 16)) @ rng.standard_normal((16, 64))
    if not alike:
        x[:, 32:] *= 0.01
        x.reshape(-1, 16, 64)[:, -16 // HELD_OUT :] = x.reshape(-1, 16, 64)[:, -16 // HELD_OUT :, ::-1]
    return x.astype(np.float32)


@pytest.mark.parametrize("alike", [True, False])
def test_gptq_is_taken_where_it_holds_on_other_rows(parse, tmp_path, alike):
    np.savez(tmp_path / "x.npz", x=rows(alike))
    options = {"calibration": tmp_path / "x.npz", "formats": ["int4-g32"], "budget": {"bits": 4}, "transforms": "none"}
    learned = qc.export(parse(GRAPH), "cpu-int4", tmp_path / "out", **options)
    plain = qc.export(parse(GRAPH), "cpu-int4", tmp_path / "plain", **options, method="rtn")
    (site,) = learned.manifest["sites"]
    assert (site["held_out"]["gptq"] < site["held_out"]["nearest"]) == alike
    reasons = [entry["reason"] for entry in learned.manifest["declined"] if entry["what"] == "GPTQ"]
    assert len(reasons) == (not alike)
    assert all("had not seen" in reason for reason in reasons)
    x = {"x": rows(alike)[:32]}
    assert np.array_equal(learned.run(x)["y"], plain.run(x)["y"]) == (not alike)


@pytest.mark.parametrize("batch", [1, 5, 16])
def test_one_row_in_eight_is_held_out(parse, batch):
    x = np.random.default_rng(1).standard_normal((80, 64)).astype(np.float32)
    data = Data(tuple({"x": x[i : i + batch]} for i in range(0, 80, batch)), random=False)
    found = collect(parse(GRAPH), {"a": -1}, data, max_rows=80)["a"]
    kept, others = np.abs(x), {tuple(row) for row in found.held_out}
    seen = kept[[tuple(row) not in others for row in kept]].astype(np.float64)
    assert (found.rows, len(found.held_out)) == (80, 10)
    np.testing.assert_allclose(found.second_moment, seen.T @ seen / len(seen), rtol=1e-5)


EXPERTS = """g (float[n,32] x, int64[n,2] i) => (float[n,2,48] y) <float[4,32,48] w> {
    a = Abs(x)
    k = Gather<axis=0>(w, i)
    y = Einsum<equation="nd,nkdf->nkf">(a, k) }"""


def test_each_matrix_of_a_stack_learns_from_the_rows_of_its_expert(parse, tmp_path):
    rng = np.random.default_rng(0)
    i = np.stack([rng.permutation(3)[:2] for _ in range(1024)])
    bases = rng.standard_normal((3, 8, 32))  # an expert's rows lie in a space of their own
    x = np.einsum("nb,nbd->nd", rng.standard_normal((1024, 8)), bases[i[:, 0]]).astype(np.float32)
    i = np.stack([i[:, 0], i[:, 0] - 4], 1)  # the same expert twice, counted from either end
    np.savez(tmp_path / "x.npz", x=x, i=i)
    options = {"calibration": tmp_path / "x.npz", "formats": ["int4-g32"], "budget": {"bits": 4}, "transforms": "none"}
    learned = qc.export(parse(EXPERTS), "reference", tmp_path / "out", **options)
    plain = qc.export(parse(EXPERTS), "reference", tmp_path / "plain", **options, method="rtn")
    (site,) = learned.manifest["sites"]
    assert site["held_out"]["gptq"] < 0.5 * site["held_out"]["nearest"]
    (said,) = [entry for entry in learned.manifest["declined"] if entry["what"] == "GPTQ of every matrix"]
    assert said["reason"] == (
        "1 of its 4 matrices see fewer rows of calibration data than their 32 features, and are rounded to nearest"
    )
    fresh = {"x": x[:64], "i": np.full((64, 2), 3)}  # of the expert that nobody chose
    assert np.array_equal(learned.run(fresh)["y"], plain.run(fresh)["y"])
    exact = {"x": x[:64], "i": i[:64]}
    assert learned.manifest["quantization"]["rel_l2"] < plain.manifest["quantization"]["rel_l2"]
    assert not np.array_equal(learned.run(exact)["y"], plain.run(exact)["y"])


def test_what_cannot_be_run_in_parts_learns_from_the_float_graph(parse, tmp_path):
    graph = """g (float[n,64] x, int64 i) => (float[n,64] z) <float[64,64] v, float[64,64] w, float[64,64] u> {
        a = MatMul(x, v)
        s = SequenceConstruct(a, x)
        b = MatMul(a, w)
        c = SequenceAt(s, i)
        y = Add(b, c)
        z = MatMul(y, u) }"""
    np.savez(tmp_path / "x.npz", x=rows(alike=True), i=np.array(0))
    options = {"calibration": tmp_path / "x.npz", "formats": ["int4-g32/int8-g32"], "budget": {"bits": 4}}
    manifest = qc.export(parse(graph), "reference", tmp_path / "out", **options).manifest
    (entry,) = [entry for entry in manifest["declined"] if "order of the graph" in entry["what"]]
    assert "'s' is no tensor; the other sites learn from the float graph alone" in entry["reason"]
    assert all(site["held_out"]["gptq"] <= site["held_out"]["nearest"] for site in manifest["sites"])
