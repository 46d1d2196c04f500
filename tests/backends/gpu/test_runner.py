"""Loading: one sentence for what cannot run, and artifacts that do not disturb each other."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import torch

from qcompile.errors import InputError, MissingExtraError, TargetError

pytest.importorskip("triton", reason="the generated programs import triton")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def build(body: str) -> ir.Model:
    text = f'<ir_version: 9, opset_import: ["": 18]> g (float[n,4] x) => (float[n,4] z) {{ {body} }}'
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


def folder_of(body: str, folder: Path) -> Path:
    from qcompile.backends.gpu.lowering import lower
    from qcompile.targets.registry import get_target

    folder.mkdir()
    lower(build(body), get_target("hopper-int4"), folder)
    return folder


X = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}


def test_two_artifacts_in_one_process(lower: Callable) -> None:
    first, _ = lower(build("z = Neg(x)"))
    second, _ = lower(build("z = Add(x, x)"))
    assert (first(X)["z"] == -X["x"]).all()
    assert (second(X)["z"] == 2 * X["x"]).all()
    assert "model" not in sys.modules


def test_an_artifact_stays_as_it_is_when_it_runs(tmp_path: Path) -> None:
    from qcompile.backends.gpu.runner import load

    folder = folder_of("z = Neg(x)", tmp_path / "a")
    before = sorted(folder.rglob("*"))
    load(folder)(X)
    assert sorted(folder.rglob("*")) == before


def test_a_program_needs_nothing_of_ours(tmp_path: Path) -> None:
    folder = folder_of("z = Neg(x)", tmp_path / "a")
    script = """import sys, model, torch
outputs = model.load(".")({"x": torch.ones(2, 4)})
assert outputs["z"].tolist() == [[-1.0] * 4] * 2
assert not any(name.startswith("qcompile") for name in sys.modules)"""
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True)


@no_gpu
def test_without_a_gpu_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qcompile.backends.gpu.runner import load

    folder = folder_of("z = Neg(x)", tmp_path / "a")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(TargetError, match="finds no GPU here; set TRITON_INTERPRET=1"):
        load(folder)


@no_gpu
def test_a_rehearsal_needs_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qcompile.backends.gpu.runner import rehearse

    folder = folder_of("z = Neg(x)", tmp_path / "a")
    monkeypatch.delenv("TRITON_INTERPRET")
    assert (rehearse(folder)(X)["z"] == -X["x"]).all()


@no_gpu
@pytest.mark.parametrize(("arch", "elsewhere"), [("sm_90", True), ("sm_100", False)])
def test_a_rehearsal_shuns_a_gpu_of_another_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str, elsewhere: bool
) -> None:
    from qcompile.backends.gpu import runner

    folder = folder_of("z = Neg(x)", tmp_path / "a")
    (folder / "cubins" / "sm_100").mkdir(parents=True)
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: divmod(int(arch[3:]), 10))
    monkeypatch.setattr(runner, "load", lambda folder: lambda inputs: {"z": "on the GPU"})
    monkeypatch.setattr(runner, "_elsewhere", lambda folder, inputs: {"z": "interpreted"})
    assert runner.rehearse(folder)(X)["z"] == ("interpreted" if elsewhere else "on the GPU")


def test_an_old_triton_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qcompile.backends.gpu.runner import load

    folder = folder_of("z = Neg(x)", tmp_path / "a")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.5.1")
    with pytest.raises(TargetError, match=r"triton 3\.5\.1 is too old: 3\.6 or newer is needed"):
        load(folder)


def test_no_triton_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from qcompile.backends.gpu.version import check_triton

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(MissingExtraError, match="the extra 'triton'"):
        check_triton()


def test_a_folder_without_a_program_is_refused(tmp_path: Path) -> None:
    from qcompile.backends.gpu.runner import load

    with pytest.raises(InputError, match=r"holds no model\.py"):
        load(tmp_path)


@pytest.mark.parametrize("inputs, said", [({}, "lacks x"), (X | {"q": X["x"]}, "unknown q")])
def test_wrong_inputs_are_refused(inputs: dict, said: str, lower: Callable) -> None:
    run, _ = lower(build("z = Neg(x)"))
    with pytest.raises(InputError, match=said):
        run(inputs)


def test_shapes_that_do_not_fit_are_refused(lower: Callable) -> None:
    run, _ = lower(build("s = Constant<value_ints=[4]>() y = ReduceSum(x) z = Reshape(x, s)"))
    with pytest.raises(InputError, match="cannot run on these inputs"):
        run(X)


@no_gpu
def test_a_cuda_graph_needs_a_gpu(tmp_path: Path) -> None:
    from qcompile.backends.gpu.runner import import_program

    program = import_program(folder_of("z = Neg(x)", tmp_path / "a")).load(tmp_path / "a")
    with pytest.raises(RuntimeError, match="CUDA graphs need a GPU"):
        program.capture(X)
