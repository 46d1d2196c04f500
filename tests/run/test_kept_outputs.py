"""Outputs in files come back as they were, once for each batch, and the files go."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from qcompile.run import kept_outputs
from qcompile.run.kept_outputs import KeptOutputs


@pytest.fixture(autouse=True)
def scratch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def outputs(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(3, 5, generator=generator)
    return {"logits": whole, "turned": whole.T, "half": whole.bfloat16(), "one": whole[0, 0], "none": whole[:0]}


def test_tensors_come_back_bit_for_bit() -> None:
    kept, batches = KeptOutputs(), [{"x": np.zeros(1)}, {"x": np.zeros(1)}]
    for number, batch in enumerate(batches):
        assert id(batch) not in kept
        kept.keep(batch, outputs(number))
    kept.keep(batches[0], outputs(7))  # it is there already
    for number, batch in enumerate(batches):
        found = kept.of(batch)
        assert found.keys() == outputs(number).keys()
        for name, tensor in outputs(number).items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)


def test_what_is_too_much_is_not_kept(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    monkeypatch.setattr(kept_outputs, "MOST", 64)
    kept, few, many = KeptOutputs(), {"x": np.zeros(1)}, {"x": np.ones(1)}
    kept.keep(few, {"y": torch.zeros(16)})
    kept.keep(many, {"y": torch.zeros(1)})
    assert id(few) in kept
    assert id(many) not in kept


def test_files_go_with_it(scratch: Path) -> None:
    kept = KeptOutputs()
    kept.keep({}, outputs(0))
    assert len(os.listdir(scratch)) == 1
    del kept
    gc.collect()
    assert os.listdir(scratch) == []
