"""Plain rounding, and no transforms, beside what was learned: when they are taken instead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small import write_model

import qcompile as qc
from qcompile.checks import plain_rounding
from qcompile.checks.plain_rounding import better_without
from qcompile.notes import TRANSFORMS


def test_transforms_must_clearly_help_the_whole() -> None:
    less, same = np.full(8, 0.9) + np.linspace(0, 0.02, 8), np.full(8, 1.0)
    assert better_without(less, same) is None
    assert better_without(same, same) == (
        "on 8 sequences the whole does not clearly err less with them: 1 against 1 without"
    )
    assert better_without(same, less) is not None


@pytest.mark.parametrize("reason", [None, "because"])
def test_static_ranges_are_tried_without_transforms(tmp_path: Path, monkeypatch, reason: str | None) -> None:
    scale = 2.0 ** np.arange(64) % 7 + 0.1  # channels that differ in loudness, which transforms even out
    x = (np.random.default_rng(1).standard_normal((64, 64)) * scale).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    monkeypatch.setattr(plain_rounding, "better_without", lambda ours, without: reason)
    made = qc.export(
        write_model(tmp_path), "reference", tmp_path / "out", calibration=tmp_path / "x.npz",
        formats=["int8-channel/int8-static"],
    )  # fmt: skip
    turned = any(site["transform_in"]["kind"] != "none" for site in made.manifest["sites"])
    assert turned == (reason is None)
    said = [entry["reason"] for entry in made.manifest["declined"] if entry["what"] == TRANSFORMS]
    assert said == ([] if reason is None else ["because"])
