"""Every registered format exports to the reference, or is refused before any work with the reason."""

from __future__ import annotations

import numpy as np
import pytest

import qcompile as qc
from qcompile.errors import InputError
from qcompile.formats import EXTENDED_FORMATS
from qcompile.formats.scalar import is_scalar
from qcompile.targets.registry import get_target

MODEL = "g (float[n,64] x) => (float[n,64] y) <float[64,64] w> { y = MatMul(x, w) }"
EXPORTS = sorted(name for name, fmt in EXTENDED_FORMATS.items() if is_scalar(fmt))


def test_most_families_and_grids_export() -> None:
    assert len(EXPORTS) >= 25


@pytest.mark.parametrize("name", EXPORTS[::4])
def test_formats_of_single_values_export(parse, tmp_path, name):
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    model = parse(MODEL, w=weight)
    artifact = qc.export(model, "reference", tmp_path / "out", formats=[name, "int8-g32"], method="rtn")
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    error = np.linalg.norm(artifact.run({"x": x})["y"] - x @ weight) / np.linalg.norm(x @ weight)
    assert 0 < error < 0.5


@pytest.mark.parametrize("name", sorted(EXTENDED_FORMATS.keys() - set(EXPORTS)))
def test_other_formats_are_refused_at_once(name):
    with pytest.raises(InputError, match=f"no target runs '{name}'"):
        get_target("reference").scheme(name)


def test_activations_take_block_formats_alone() -> None:
    with pytest.raises(InputError, match="no target quantizes activations to"):
        get_target("reference").scheme(f"int4-g32/{EXPORTS[0]}")
