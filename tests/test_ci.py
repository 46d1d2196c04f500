"""The scripts in ``.ci`` run every part, fail where any part fails, and let pytest speak last."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: Stands for every tool: says what it was called with, and fails where that is asked for.
TOOL = """#!/usr/bin/env bash
called="$(basename "$0") $*"
echo "ran $called"
case "$called" in *"$FAILING"*) exit 3 ;; esac
"""

#: Makes the environment that it is asked for.
PYTHON3 = TOOL + 'mkdir -p "$3/bin" && touch "$3/bin/activate"\n'

CHECKS = ["ruff check", "ruff format", "mypy", "python -m pytest -q tests/test_architecture.py"]


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A folder with the scripts and a configuration, and tools that do nothing."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    (tmp_path / "pyproject.toml").write_text("[tool.mypy]\n")
    (tmp_path / "tools").mkdir()
    for name in ("ruff", "mypy", "python", "python3", "pip", "pytest", "chromium"):
        tool = tmp_path / "tools" / name
        tool.write_text(PYTHON3 if name == "python3" else TOOL)
        tool.chmod(0o755)
    return tmp_path


def call(scripts: Path, name: str, failing: str, *arguments: str) -> tuple[int, list[str]]:
    """The status of a script while one tool fails, and the calls of tools in their order."""
    path = f"{scripts / 'tools'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "FAILING": failing}
    run = subprocess.run([scripts / ".ci" / name, *arguments], env=environment, capture_output=True, text=True)
    return run.returncode, [line.removeprefix("ran ") for line in run.stdout.splitlines() if line.startswith("ran ")]


def started(calls: list[str], wanted: list[str]) -> bool:
    """Whether the calls begin with these words, one each."""
    return len(calls) == len(wanted) and all(own.startswith(words) for own, words in zip(calls, wanted))


@pytest.mark.parametrize("failing", ["nothing", *CHECKS])
def test_check_runs_all_and_fails_where_any_failed(scripts: Path, failing: str) -> None:
    status, calls = call(scripts, "check", failing)
    assert started(calls, CHECKS), calls
    assert status == (0 if failing == "nothing" else 1)


@pytest.mark.parametrize("failing", ["nothing", *CHECKS, "pytest -n 2 --dist worksteal"])
def test_run_checks_first_and_tests_last(scripts: Path, failing: str) -> None:
    status, calls = call(scripts, "run", failing, "--maxfail", "1")
    assert started(calls, ["python3 -m venv", "pip install", *CHECKS, "pytest -n 2 --dist worksteal --maxfail 1"]), (
        calls
    )
    assert (status == 0) == (failing == "nothing")


@pytest.mark.parametrize("failing", ["python3 -m venv", "pip install"])
def test_run_stops_where_there_is_no_environment(scripts: Path, failing: str) -> None:
    status, calls = call(scripts, "run", failing)
    assert status == 3
    assert calls[-1].startswith(failing)


def test_check_says_that_its_tools_are_missing(scripts: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "FAILING": "nothing"}
    run = subprocess.run([scripts / ".ci" / "check"], env=environment, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("the tools are missing: pip install")
