"""Folders of artifacts appear whole or not at all; those of killed exports are swept, those of running ones are not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qcompile.artifact.folder import atomic_folder
from qcompile.errors import InputError

#: Makes a temporary folder with a file in it, says so, and waits for a line before it goes on.
EXPORT = """
import sys
from pathlib import Path
from qcompile.artifact.folder import atomic_folder
with atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "file").write_text("content")
    print(folder, flush=True)
    sys.stdin.readline()
    assert (folder / "file").read_text() == "content"
"""

#: Makes temporary folders one after the other and gives each up; none may vanish while it is in use.
HURRY = """
import sys
from pathlib import Path
from qcompile.artifact.folder import atomic_folder
for _ in range(100):
    try:
        with atomic_folder(Path(sys.argv[1])) as folder:
            (folder / "file").write_text("content")
            assert (folder / "file").is_file() and folder.with_name(folder.name + ".lock").is_file()
            raise KeyError
    except KeyError:
        pass
"""


def start(code: str, target: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code, str(target)], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def started(target: Path) -> tuple[subprocess.Popen[str], Path]:
    """An export that has its temporary folder and waits."""
    process = start(EXPORT, target)
    folder = Path(process.stdout.readline().strip())
    assert (folder / "file").is_file()
    return process, folder


def finish(process: subprocess.Popen[str]) -> str:
    """What an export says at the end, once it is let go on; nothing, if all went well."""
    return process.communicate("\n", timeout=60)[1]


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_success_leaves_the_folder_alone(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "deep" / "out") as folder:
        (folder / "file").write_text("content")
        assert not (tmp_path / "deep" / "out").exists()
    assert contents(tmp_path / "deep") == {"out"}
    assert contents(tmp_path / "deep" / "out") == {"file"}
    assert (tmp_path / "deep" / "out").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "file").write_text("content")
            raise error

    with pytest.raises(error):
        fail()
    assert contents(tmp_path) == set()


def test_a_folder_that_exists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists already"), atomic_folder(tmp_path / "out"):
        pass
    assert contents(tmp_path) == {"out"}


def test_what_a_killed_export_left_is_swept_by_the_next_one_to_the_same_place(tmp_path: Path) -> None:
    process, left = started(tmp_path / "out")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    with atomic_folder(tmp_path / "elsewhere"):
        assert (left / "file").is_file()
    with atomic_folder(tmp_path / "out") as folder:
        assert contents(tmp_path) == {"elsewhere", folder.name, f"{folder.name}.lock"}
    assert contents(tmp_path) == {"elsewhere", "out"}


def test_an_export_that_is_refused_sweeps_as_well(tmp_path: Path) -> None:
    process, _ = started(tmp_path / "out")
    (tmp_path / "out").mkdir()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    with pytest.raises(InputError, match="exists already"), atomic_folder(tmp_path / "out"):
        pass
    assert contents(tmp_path) == {"out"}


def test_exports_to_the_same_place_let_each_other_be(tmp_path: Path) -> None:
    first, one = started(tmp_path / "out")
    second, other = started(tmp_path / "out")
    assert contents(tmp_path) == {name for path in (one, other) for name in (path.name, f"{path.name}.lock")}
    assert finish(second) == ""
    assert contents(tmp_path) == {"out", one.name, f"{one.name}.lock"}
    assert f"InputError: '{tmp_path / 'out'}' exists already" in finish(first)
    assert contents(tmp_path) == {"out"}
    assert contents(tmp_path / "out") == {"file"}


def test_exports_in_a_hurry_leave_nothing(tmp_path: Path) -> None:
    processes = [start(HURRY, tmp_path / "out") for _ in range(4)]
    assert [finish(process) for process in processes] == [""] * 4
    assert contents(tmp_path) == set()


@pytest.mark.parametrize("name", [".out.mine", ".out.b.0123456789abcdef", ".other.0123456789abcdef"])
def test_only_own_folders_are_swept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / f"{name}.lock").touch()
    with atomic_folder(tmp_path / "out"):
        pass
    assert contents(tmp_path) == {"out", name, f"{name}.lock"}


def test_names_are_no_patterns(tmp_path: Path) -> None:
    left = ".a[b]*.0123456789abcdef"
    (tmp_path / left).mkdir()
    (tmp_path / f"{left}.lock").touch()
    with atomic_folder(tmp_path / "a[b]*"):
        pass
    assert contents(tmp_path) == {"a[b]*"}


def test_files_in_folders_of_an_artifact_are_its_own(tmp_path: Path) -> None:
    out = tmp_path / "out"
    facts = {"qcompile": "", "source": {}, "sites": [], "runtimes": {}, "files": ["kernels", "model.py"]}
    for name in ("kernels/sm_90/a.cubin", "model.py", "report.html", "manifest.json"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(json.dumps(facts))
    with atomic_folder(out, overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in out.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_artifact_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, replace = tmp_path / "out", os.replace
    out.mkdir()
    facts = {"qcompile": "", "source": {}, "sites": [], "runtimes": {}, "files": []}
    (out / "manifest.json").write_text(json.dumps(facts))

    def fails_for_the_new(source: Path, target: Path) -> None:
        if target == out and not str(source).endswith(".old"):
            raise OSError("no")
        replace(source, target)

    monkeypatch.setattr("os.replace", fails_for_the_new)
    with pytest.raises(OSError, match="no"), atomic_folder(out, overwrite=True):
        pass
    assert json.loads((out / "manifest.json").read_text()) == facts
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
