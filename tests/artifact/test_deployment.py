"""An artifact runs where numpy, onnxruntime and typer are installed, and nothing else."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from packaging.requirements import Requirement

import qcompile
from qcompile.artifact.alone import Alone, check_alone
from qcompile.errors import DISTRIBUTION, InputError, MissingExtraError
from qcompile.run.data import example_inputs
from qcompile.run.session import evaluate

ROOT = Path(__file__).parents[2]

#: Dependencies that an artifact needs to run in onnxruntime, and from the command line.
NEEDED = {"numpy", "onnxruntime", "typer", "rich"}

#: Every other dependency cannot be imported.
BARE = """
import sys

class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError("not installed here: " + name)

sys.meta_path.insert(0, Bare())
"""


def absent() -> set[str]:
    known = [Requirement(line).name for line in importlib.metadata.requires(DISTRIBUTION) or ()]
    found = {name.replace("-", "_") for name in known if name not in NEEDED}
    assert found >= {"torch", "onnx", "onnx_ir", "onnxscript", "scipy"}
    return found | {"tvm"}


def bare(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", BARE.replace("{absent}", repr(absent())) + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout


@pytest.fixture(scope="module", params=["cpu-int4", "cpu-int8", "reference"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployed") / "out"
    source = ROOT / "examples" / "zoo" / "dit.onnx"
    qcompile.export(source, request.param, folder, transforms="hadamard", method="rtn")
    return folder


def inputs_of(folder: Path) -> dict[str, np.ndarray]:
    return dict(example_inputs(ir.load(folder / "model.onnx")))


def test_from_python(artifact: Path, tmp_path: Path) -> None:
    inputs = inputs_of(artifact)
    np.savez(tmp_path / "in.npz", **inputs)
    code = """
import json, numpy as np
from qcompile import Artifact
outputs = Artifact.open(sys.argv[1]).run(dict(np.load(sys.argv[2])))
print(json.dumps({name: value.tolist() for name, value in outputs.items()}))
"""
    found = json.loads(bare(code, artifact, tmp_path / "in.npz"))
    for name, want in evaluate(artifact / "model.onnx", inputs).items():
        np.testing.assert_allclose(found[name], want, rtol=1e-4, atol=1e-5)


def test_from_the_command_line(artifact: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", **inputs_of(artifact))
    code = "from qcompile.cli.commands import main; main()"
    bare(code, "run", artifact, "--inputs", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
    assert np.load(tmp_path / "out.npz").files


def test_verified_where_the_source_is_not(artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(artifact, tmp_path / "moved")
    manifest = json.loads((tmp_path / "moved" / "manifest.json").read_text())
    manifest["source"]["path"] = "elsewhere.onnx"
    (tmp_path / "moved" / "manifest.json").write_text(json.dumps(manifest))
    said = " ".join(bare("from qcompile.cli.commands import main; main()", "verify", tmp_path / "moved").split())
    assert "not here: 'elsewhere.onnx'" in said
    assert "files as written 1 of 1" in said
    assert "in ort runs" in said


def test_what_is_wrong_with_an_artifact_alone(artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(artifact, folder)
    opened = qcompile.Artifact.open(folder)
    inputs = inputs_of(artifact)
    assert check_alone(opened, inputs) == check_alone(opened) == Alone(1, {"ort": "runs"}, ())
    name, first = next(iter(inputs.items()))
    short = check_alone(opened, {**inputs, name: first[..., :1]})
    assert short.runs["ort"].startswith("does not run: ")
    assert len(short.faults) == 1
    holed = {name: np.full_like(v, np.nan) if v.dtype.kind == "f" else v for name, v in inputs.items()}
    spoiled = check_alone(opened, holed)
    assert [fault.partition(" in ")[0] for fault in spoiled.faults] == ["ort: NaN"]
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    changed = check_alone(opened)
    assert changed.files == 0
    assert changed.faults[0] == "model.onnx: the file is not the one that was written"
    (folder / "model.onnx").unlink()
    gone = check_alone(opened)
    assert gone.faults[0] == "model.onnx: the file is missing"
    assert gone.runs["ort"].startswith("does not load: ")


def test_an_old_manifest_has_no_digests(artifact: Path) -> None:
    opened = qcompile.Artifact.open(artifact)
    old = {key: value for key, value in opened.manifest.items() if key != "digests"}
    with pytest.raises(InputError, match="states no digests: give the source with --against"):
        check_alone(qcompile.Artifact(opened.folder, old))


def test_an_extra_that_is_missing_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(MissingExtraError("this", "triton")).startswith("this needs the extra 'triton': pip install 'triton>=")

    def missing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert str(MissingExtraError("this", "triton")).endswith("pip install -e '.[triton]' in a checkout of qcompile")
