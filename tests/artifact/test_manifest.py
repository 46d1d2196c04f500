"""What a manifest says of sites is known by names that lowering cannot take."""

from __future__ import annotations

import re
from pathlib import Path

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
