"""The top of an artifact of several graphs: their files have a second name there."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from qcompile.artifact.artifact import Artifact, read_manifest
from qcompile.artifact.top import write_top
from qcompile.choice.export_options import Options


@pytest.mark.parametrize("links", [True, False])
def test_graphs_stand_above_their_parts(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Path) -> None:
        raise OSError("one name for each file")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    model = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], []))
    for part in ("first", "second"):
        (tmp_path / part).mkdir()
    onnx.save(model, tmp_path / "first" / "model.onnx")
    (tmp_path / "second" / "model.py").write_text("")  # of a runtime without such a file
    parts = {part: Artifact(tmp_path / part, {}) for part in ("first", "second")}
    write_top(tmp_path, parts, Path("source"), Options("cpu-int4"), [])
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second", "first_model.onnx", "manifest.json"}
    own, above = tmp_path / "first" / "model.onnx", tmp_path / "first_model.onnx"
    assert above.read_bytes() == own.read_bytes()
    assert above.samefile(own) is links
    manifest = read_manifest(tmp_path)
    assert manifest["parts"] == {"first": {"onnx": "first_model.onnx"}, "second": {"onnx": None}}
    assert manifest["files"] == ["first", "first_model.onnx", "second"]
