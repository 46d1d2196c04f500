"""The products that a graph computes without weights: of attention, one operator or spelled out, and of scans."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from cached_decoder import cached_decoder
from shipped import ZOO

import qcompile as qc
from qcompile.analysis.value_products import products


@pytest.mark.parametrize("attention", ["one", "spelled", "grouped"])
def test_attention_has_two(attention: str, tmp_path: Path) -> None:
    found = products(ir.load(cached_decoder(tmp_path / "model.onnx", attention)))
    assert [product.kind for product in found] == ["scores", "values"]
    assert "--cache-format" in found[0].reason
    names = {"one": ("q", "keys"), "spelled": ("q", "turned"), "grouped": ("q6", "k6")}
    assert found[0].operands == names[attention]


def test_inspection_and_manifests_list_them(tmp_path: Path) -> None:
    path = cached_decoder(tmp_path / "model.onnx")
    inspected = qc.inspect(path)["products"]
    assert [entry["kind"] for entry in inspected] == ["scores", "values"]
    assert all(entry["reason"] for entry in inspected)
    artifact = qc.export(path, "reference", tmp_path / "artifact", method="rtn", transforms="none")
    assert artifact.manifest["products"] == inspected


def test_a_scan_is_one() -> None:
    found = products(ir.load(ZOO / "mamba.onnx"))
    assert {product.kind for product in found} == {"scan"}
    assert {len(product.operands) for product in found} == {4}
    assert "scans" in found[0].reason
