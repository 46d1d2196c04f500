"""Exports that several processes share: the same bytes as one makes alone, and nothing left behind where one fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refused
from small import write_data, write_model

import qcompile as qc

ZOO = Path(__file__).parent.parent / "examples" / "zoo"

#: Data of each model: rows, and how much of each.
DATA = {"language_model": (12, 16), "mamba": (9, 12), "dit": (8, None)}


def data_of(name: str) -> dict[str, np.ndarray]:
    rows, length = DATA[name]
    file = "dit_calibration" if name == "dit" else "language_model_calibration"
    with np.load(ZOO / f"{file}.npz") as saved:
        return {key: array[:rows] if length is None else array[:rows, :length] for key, array in saved.items()}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "target", "options"),
    [
        ("language_model", "cpu-int4", {}),
        ("dit", "blackwell-fp4", {"transforms": "hadamard"}),
        ("mamba", "reference", {"formats": ["int4-g32/int8-g32", "int8-g32"], "budget": {"bits": 5}, "method": "rtn"}),
    ],
)
def test_one_two_and_three_processes_write_the_same_bytes(
    name: str, target: str, options: dict[str, Any], tmp_path: Path
) -> None:
    made = {}
    for devices in (1, 2, 3):
        folder = tmp_path / str(devices)
        qc.export(ZOO / f"{name}.onnx", target, folder, calibration=data_of(name), devices=devices, **options)
        made[devices] = content(folder)
    assert made[1].keys() == made[2].keys() == made[3].keys()
    different = [file for file in made[1] if not made[1][file] == made[2][file] == made[3][file]]
    assert different == []


def test_a_refusal_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    np.savez(tmp_path / "wrong.npz", z=np.zeros((4, 64), np.float32))
    said = refused(
        tmp_path, "export", model, "--target", "cpu-int4", "-o", tmp_path / "out", "--calibration",
        tmp_path / "wrong.npz", "--devices", 2,
    )  # fmt: skip
    assert "'z'" in said or "x" in said


def test_more_devices_than_there_are(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    assert "leaves nobody" in refused(tmp_path, "export", model, "--target", "cpu-int4", "--devices", 0)


def running(parent: int) -> list[int]:
    """The processes that a process has started, but for those that help Python."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status, line = (path / "stat").read_text(), (path / "cmdline").read_bytes()
        except OSError:
            continue
        if int(status.rpartition(")")[2].split()[1]) == parent and b"spawn_main" in line:
            found.append(int(path.name))
    return sorted(found)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("whom", [0, 1])
def test_a_killed_process_stops_all_and_leaves_nothing(whom: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **data_of("language_model"))
    before = set(tmp_path.iterdir())
    command = [sys.executable, "-m", "qcompile", "export", str(ZOO / "language_model.onnx"), "--target", "cpu-int4",
               "-o", str(tmp_path / "out"), "--calibration", str(tmp_path / "data.npz"), "--devices", "2"]  # fmt: skip
    scratch = tmp_path.parent / f"{tmp_path.name}-scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(scratch)}
    )
    deadline = time.monotonic() + 120
    while not (len(members := running(process.pid)) == 2 and len(set(tmp_path.iterdir()) - before) == 2):
        assert time.monotonic() < deadline, "it never came so far"
        assert process.poll() is None
        time.sleep(0.1)  # until the temporary folder and its lock are there
    os.kill(members[whom], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert out == ""
    assert [line for line in err.splitlines() if line.startswith("error")] == [
        f"error: process {whom} of 2 was killed by signal 9; the others were stopped, and nothing was written"
    ]
    assert "Traceback" not in err
    assert set(tmp_path.iterdir()) == before
    assert [path.name for path in scratch.iterdir() if path.name.startswith("qcompile")] == []
    assert not any(Path(f"/proc/{member}").exists() for member in members)


@pytest.mark.skipif(sys.platform != "linux", reason="torchrun finds its own address there")
def test_under_torchrun_the_group_that_is_there_is_joined(tmp_path: Path) -> None:
    model, data = write_model(tmp_path), write_data(tmp_path)
    alone = tmp_path / "alone"
    qc.export(model, "cpu-int4", alone, calibration=str(data))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "qcompile",
               "export", str(model), "--target", "cpu-int4", "-o", str(tmp_path / "both"), "--calibration",
               str(data)]  # fmt: skip
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bits per weight") == 1  # one process speaks
    assert content(tmp_path / "both") == content(alone)


def test_the_work_folder_is_shared_and_serves_another_number_of_processes(tmp_path: Path) -> None:
    data, folders, reused = data_of("dit"), {}, {}
    for name, devices in (("alone", 1), ("both", 2), ("again", 1), ("all", 3)):
        work = tmp_path / ("other" if name == "alone" else "work")
        made = qc.export(
            ZOO / "dit.onnx", "cpu-int4", tmp_path / name, calibration=data, devices=devices, work=work,
            transforms="none", method="gptq",
        )  # fmt: skip
        folders[name], reused[name] = content(made.folder), made.work.summary()["kinds"]
    assert folders["alone"] == folders["both"] == folders["again"] == folders["all"]
    assert {kind: found["reused"] for kind, found in reused["both"].items()} == dict.fromkeys(reused["both"], 0)
    for name in ("again", "all"):
        assert {kind: found["computed"] for kind, found in reused[name].items()} == dict.fromkeys(reused[name], 0)
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == sorted(
        path.name for path in (tmp_path / "other").iterdir()
    )


def test_a_sweep_is_the_same_by_two() -> None:
    from qcompile.choice.export_options import Options
    from qcompile.sweep import sweep

    options = Options("reference", calibration=data_of("dit"), formats=("int4-g32", "int8-g32"), transforms="none")
    alone, both = (
        sweep(ZOO / "dit.onnx", options, {"bits": (4.5, 7.0)}, points=3, devices=devices) for devices in (1, 2)
    )
    assert len({point.loss for point in alone}) == 3
    assert alone == both
