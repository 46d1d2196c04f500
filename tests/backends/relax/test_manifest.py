"""The targets as data, and what is said where TVM is missing: these need no TVM."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from qcompile.backends.relax.manifest import TARGETS
from qcompile.errors import MissingExtraError
from qcompile.formats import Format
from qcompile.targets.registry import backend
from qcompile.targets.target import Target

SCALES_WITHIN_A_ROW = 1


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_scheme_has_kernels(target: Target) -> None:
    schemes = [target.scheme(name) for name in (*target.schemes, target.default, target.edge)]
    for scheme in schemes:
        assert isinstance(scheme.weight, Format)
        assert scheme.weight.bits <= 8
        if scheme.activation is not None:
            assert scheme.activation.rows == SCALES_WITHIN_A_ROW
            assert len(scheme.activation.targets) <= 2


def test_a_missing_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "tvm" else found(name, *rest))
    with pytest.raises(
        MissingExtraError, match=r"^the tvm runtime needs the extra 'tvm': pip install 'apache-tvm>=[\d.]+'$"
    ):
        backend("relax")
