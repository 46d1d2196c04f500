"""What a manifest says of sites is known by names that lowering cannot take."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import qcompile as qc

PAGE = Path(__file__).parents[2] / "docs" / "manifest.md"

#: The second site reads what the first makes: lowering puts another operator, and another value, in its place.
CHAIN = """g (float[n,64] x) => (float[n,64] y) <float[64,64] a, float[64,64] b, float[64,64] c> {
    h = MatMul(x, a)
    m = MatMul(h, b)
    s = Sigmoid(m)
    y = MatMul(s, c) }"""


def test_transforms_of_values_that_lowering_replaces_are_told(parse, tmp_path):
    artifact = qc.export(parse(CHAIN), "reference", tmp_path / "artifact", transforms="wush")
    manifest = artifact.manifest
    assert [entry["value"] for entry in manifest["online_transforms"]] == ["x", "h"]
    assert [site["transform_in"]["online"] for site in manifest["sites"]] == [True, True, False]  # the last is an edge


def test_errors_of_sites_are_measured_and_plain_rounding_stands_beside(parse, tmp_path):
    """Of a model that is one map, the output is the site's: its error by the artifact's own numbers."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((40, 64)).astype(np.float32), rng.standard_normal((64, 48)).astype(np.float32)
    model = parse("g (float[40,64] x) => (float[40,48] y) <float[64,48] w> { y = MatMul(x, w) }", w=w)
    options = {"method": "rtn", "transforms": "none", "calibration": {"x": x}, "evaluation": {"x": x}}
    artifact = qc.export(model, "reference", tmp_path / "artifact", formats=["int4-g32"], **options)
    want, have = x @ w, artifact.run({"x": x})["y"]
    error = np.linalg.norm(have - want) / np.linalg.norm(want)
    (site,) = artifact.manifest["sites"]
    assert error > 1e-3
    assert site["measured_t2"] == pytest.approx(error**2, rel=1e-4)
    assert site["t2"] == pytest.approx(error**2, rel=0.2)
    plain = artifact.manifest["quantization"]["plain"]
    assert plain["rel_l2"] == pytest.approx(error, rel=1e-4)
    assert plain["divergence"] == artifact.manifest["quantization"]["divergence"]


def test_the_page_on_manifests_names_their_keys(parse, tmp_path):
    artifact = qc.export(parse(CHAIN), "reference", tmp_path / "artifact", method="rtn", transforms="none", effort=True)
    _, whole, weights, _, effort = re.split(r"^#+ ", PAGE.read_text(), flags=re.MULTILINE)
    assert rows(whole) == artifact.manifest.keys()
    assert rows(weights) == artifact.manifest["weights"][0].keys()
    assert rows(effort) == artifact.manifest["effort"].keys()


def rows(section: str) -> set[str]:
    """The words in code of the first column of a table."""
    first = (line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
    return {name for cell in first for name in re.findall(r"`(\w+)`", cell)}
