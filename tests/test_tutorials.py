"""Tutorials run as they are printed: files are written, commands run, and what they print has the printed labels.

A block of code with a title is a file, one of ``sh`` is a command, one of ``text`` has lines of what the command before
it printed: figures may differ, labels may not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)

#: Modules that a tutorial needs beside the basis.
NEEDS = {"decoder": ("transformers", "tokenizers", "compressed_tensors", "onnxruntime_genai")}


@dataclass(frozen=True)
class Block:
    kind: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(page.read_text())]


def labels(text: str) -> list[str]:
    """The first words of lines, up to two spaces."""
    return [re.split(r"\s{2,}", line.strip())[0] for line in text.splitlines() if line.strip(" .…")]


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_tutorials_consist_of_files_commands_and_what_they_print(page: Path) -> None:
    found = blocks(page)
    assert {block.kind for block in found} <= {"python", "sh", "text"}
    assert all(block.title for block in found if block.kind == "python")
    assert sum(block.kind == "sh" for block in found) >= 3
    assert found[0].kind != "text"


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_tutorials_run_as_printed(page: Path, tmp_path: Path) -> None:
    for module in NEEDS.get(page.stem, ()):
        pytest.importorskip(module)
    (tmp_path / "bin").mkdir()
    for name, command in (("qcompile", "-m qcompile"), ("python", "")):
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
        script.chmod(0o755)
    shutil.copytree(ROOT / "examples" / "zoo", tmp_path / "examples" / "zoo")
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    printed = ""
    for block in blocks(page):
        if block.kind == "python":
            (tmp_path / block.title).write_text(block.text)
        elif block.kind == "sh":
            run = subprocess.run(
                ["sh", "-e", "-c", block.text], cwd=tmp_path, env=environment, capture_output=True, text=True
            )  # fmt: skip
            assert run.returncode == 0, f"{block.text}\n{run.stdout}\n{run.stderr}"
            printed = run.stdout
        else:
            assert [label for label in labels(block.text) if label not in printed] == [], printed
