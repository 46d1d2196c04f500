"""The shipped Mamba with its states as inputs and outputs: a token more costs one step, also when it is quantized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from shipped import ZOO, shipped

import qcompile as qc
from qcompile.ir.cache_pairs import CachePair, cache_pairs
from qcompile.ir.required import name_of
from qcompile.run.session import Run, Session


@pytest.fixture(scope="module")
def stateful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shipped("mamba_stateful", tmp_path_factory.mktemp("zoo"))


def texts(name: str, rows: int, length: int) -> np.ndarray:
    return np.load(ZOO / f"language_model_{name}.npz")["input_ids"][:rows, :length].astype(np.int64)


def start(pairs: list[CachePair], rows: int) -> dict[str, np.ndarray]:
    """The states of texts that begin."""
    shapes = {name_of(pair.past): pair.past.shape or () for pair in pairs}
    return {name: np.zeros((rows, *map(int, list(shape)[1:])), np.float32) for name, shape in shapes.items()}


def in_steps(run: Run, pairs: list[CachePair], ids: np.ndarray) -> np.ndarray:
    """Logits of a prompt of nine tokens, of two more at once, and of one after the other."""
    states, logits = start(pairs, len(ids)), []
    for step in (slice(0, 9), slice(9, 11), *(slice(at, at + 1) for at in range(11, ids.shape[1]))):
        made = run({"input_ids": ids[:, step]} | states)
        states = {name_of(pair.past): made[name_of(pair.present)] for pair in pairs}
        logits.append(made["logits"])
    return np.concatenate(logits, 1)


def test_steps_make_what_the_whole_makes(stateful: Path) -> None:
    pairs, ids = cache_pairs(ir.load(stateful)), texts("evaluation", 2, 24)
    assert {name_of(pair.past).partition(".")[2].partition(".")[2] for pair in pairs} == {"conv", "recurrent"}
    assert len(pairs) == 16
    want = Session(ZOO / "mamba.onnx").run({"input_ids": ids})["logits"]
    have = in_steps(Session(stateful).run, pairs, ids)
    assert np.linalg.norm(have - want) < 1e-5 * np.linalg.norm(want)


def test_it_is_quantized_and_goes_on(stateful: Path, tmp_path: Path) -> None:
    pairs, ids = cache_pairs(ir.load(stateful)), texts("evaluation", 2, 24)
    rows = texts("calibration", 8, 64)
    artifact = qc.export(
        stateful, "cpu-int4", tmp_path / "out", calibration={"input_ids": rows} | start(pairs, len(rows)), method="rtn",
        transforms="none",
    )  # fmt: skip
    assert artifact.manifest["bytes"]["source"] > 3.5 * artifact.manifest["bytes"]["artifact"]
    run = artifact.load()
    want = Session(stateful).run({"input_ids": ids} | start(pairs, 2))["logits"]
    whole, steps = run({"input_ids": ids} | start(pairs, 2))["logits"], in_steps(run, pairs, ids)
    off, off_in_steps, apart = (np.linalg.norm(x) for x in (whole - want, steps - want, steps - whole))
    assert apart < 0.2 * off  # the kernel rounds inputs to 8 bits, which the last bit of a sum may move to a neighbour
    assert abs(off_in_steps - off) < 0.1 * off
    found = qc.compare(stateful, artifact.folder, {"input_ids": ids} | start(pairs, 2), generate=6)
    assert found["generation"]["tokens"] == 6
    assert 0 < found["divergence"]["mean"] < 0.2
